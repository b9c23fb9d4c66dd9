"""What a fusion classifier accepts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histoweave._validate import label_name, listing, require_choice, require_matrix

Graph = sp.csr_matrix | dict[str, sp.csr_matrix] | None


def training_rows(
    features: Mapping[str, np.ndarray],
    labels: Sequence[Any],
    groups: Sequence[Any] | None,
    positions: np.ndarray | None,
) -> tuple[dict[str, np.ndarray], np.ndarray, list[str], np.ndarray, np.ndarray | None]:
    """Return checked ``(features, class numbers (-1 unlabelled), class names, group numbers, positions)``."""
    labels = pd.Series(np.asarray(labels, dtype=object)).map(label_name, na_action="ignore")
    labels = labels.where(labels.notna() & (labels != ""), None)
    n = len(labels)
    features = {str(k): require_matrix(v, n, name=f"features[{k!r}]") for k, v in features.items()}
    if not features or any(mark in name for name in features for mark in "+:"):
        msg = f"`features` must name one modality or more, without '+' and ':'; got {listing(features)}."
        raise ValueError(msg)
    names = sorted(labels.dropna().unique())
    if len(names) < 2:
        msg = f"At least 2 classes need labelled rows, found {listing(names)}."
        raise ValueError(msg)
    codes = pd.Categorical(labels, categories=names).codes.astype(int)
    groups = np.arange(n) if groups is None else pd.factorize(np.asarray(groups))[0]
    if len(groups) != n:
        msg = f"`groups` has {len(groups)} entries for {n} labels; give one a row."
        raise ValueError(msg)
    if positions is not None:
        positions = require_matrix(positions, n, name="positions")
    return features, codes, names, groups, positions


def require_graph(graph: Any, n: int) -> Graph:
    """Return the neighbours of ``n`` rows as sparse matrices, ``None`` for none."""
    if graph is None:
        return None
    if isinstance(graph, Mapping):
        return {name: require_graph(of, n) for name, of in graph.items()}
    if getattr(graph, "shape", None) != (n, n):
        msg = (
            f"`graph` must be a matrix of the neighbours of every row ({n}, {n}), got "
            f"{getattr(graph, 'shape', type(graph).__name__)}; see `adata.obsp['spatial_connectivities']`."
        )
        raise ValueError(msg)
    return sp.csr_matrix(graph).astype(bool)


def neighbours_of(graph: Graph, chosen: Sequence[str]) -> sp.csr_matrix | None:
    """Return the neighbours by any of the chosen modalities, or those that do not depend on modalities."""
    if not isinstance(graph, dict):
        return graph
    lacking = [name for name in chosen if name not in graph]
    if lacking:
        msg = f"`graph` lacks {listing(lacking)}; it has neighbours by {listing(graph)}. Give them for every modality."
        raise ValueError(msg)
    return sum((graph[name] for name in chosen[1:]), graph[chosen[0]])


def rows_to_predict(
    features: Mapping[str, np.ndarray],
    modalities: Sequence[str] | None,
    fitted: Collection[str],
    widths: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """Return the checked blocks of the modalities that are asked for, there and fitted, in the order of names."""
    asked = {modalities} if isinstance(modalities, str) else set(features if modalities is None else modalities)
    for name in () if modalities is None else sorted(asked):
        require_choice(name, tuple(widths), argument="modalities")
    wanted = sorted(asked & set(fitted) & set(features))
    if not wanted:
        msg = (
            f"None of the modalities asked for ({listing(sorted(asked))}) is both among the features "
            f"({listing(features)}) and fitted ({listing(sorted(fitted))})."
        )
        raise ValueError(msg)
    n = len(features[wanted[0]])
    blocks = {m: require_matrix(features[m], n, name=f"features[{m!r}]") for m in wanted}
    for m, block in blocks.items():
        if block.shape[1] != widths[m]:
            msg = f"features[{m!r}] has {block.shape[1]} columns, the classifier was fitted on {widths[m]}."
            raise ValueError(msg)
    return blocks
