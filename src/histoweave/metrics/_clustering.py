"""How far two partitions of the same rows agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import (
    adjusted_rand_score,
    completeness_score,
    homogeneity_score,
    normalized_mutual_info_score,
    rand_score,
)

from histoweave.metrics._check import label_array, same_length


def clustering(labels: Any, clusters: Any) -> dict[str, float]:
    """Score a clustering against known labels; the names of the clusters do not matter.

    Parameters
    ----------
    labels
        Known class of each row, shape ``(n,)``. Rows without a label (``None``, NaN) are left out.
    clusters
        Cluster of each row, shape ``(n,)``; nothing missing among the labelled rows.

    Returns
    -------
    ``n``
        labelled rows, the ones scored;
    ``adjusted_rand``
        Rand index corrected for chance [1]_: 0 expected at random, 1 for equal partitions, may be negative;
    ``rand``
        share of pairs of rows on which the partitions agree (together in both or apart in both); high by
        itself when there are many classes;
    ``nmi``
        mutual information over the mean of the two entropies;
    ``homogeneity``
        1 when every cluster holds one class only;
    ``completeness``
        1 when every class lies in one cluster [2]_.

    Raises
    ------
    ValueError
        Lengths that disagree, fewer than two labelled rows, or labelled rows without a cluster.

    References
    ----------
    .. [1] Hubert & Arabie (1985). Comparing partitions. Journal of Classification.
    .. [2] Rosenberg & Hirschberg (2007). V-measure: a conditional entropy-based external cluster evaluation
       measure. EMNLP.

    Examples
    --------
    >>> import histoweave as hw
    >>> hw.metrics.clustering(["a", "a", "b", None], [1, 1, 0, 2])["adjusted_rand"]
    1.0
    """
    labels, clusters = np.asarray(labels, dtype=object), np.asarray(clusters, dtype=object)
    same_length(labels=labels, clusters=clusters)
    labelled = pd.notna(labels)
    if labelled.sum() < 2:
        msg = f"`labels` holds {int(labelled.sum())} labelled rows of {len(labels)}; at least 2 are needed."
        raise ValueError(msg)
    truth = label_array(labels[labelled], argument="labels")
    found = label_array(clusters[labelled], argument="clusters")
    return {
        "n": float(len(truth)),
        **agreement(truth, found),
        "homogeneity": float(homogeneity_score(truth, found)),
        "completeness": float(completeness_score(truth, found)),
    }


def agreement(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Return adjusted Rand, plain Rand and normalised mutual information; NaN for a single row (no pairs)."""
    scores = {"adjusted_rand": adjusted_rand_score, "rand": rand_score, "nmi": normalized_mutual_info_score}
    return {name: float(f(first, second)) if len(first) > 1 else float("nan") for name, f in scores.items()}
