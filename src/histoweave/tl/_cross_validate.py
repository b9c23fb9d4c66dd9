"""Cross-validate the whole chain on folds that do not leak, beside what needs no tissue at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._random import child_seeds
from histoweave._record import record
from histoweave._resolve import working_copy
from histoweave._settings import track
from histoweave._validate import listing, require_choice
from histoweave.models import MultiLabelClassifier, RegionClassifier
from histoweave.models.multilabel_classifier import PRESENT
from histoweave.tl._fold_runner import ARMS, FoldRunner
from histoweave.tl._labelled_folds import Answer
from histoweave.tl._write import write_prediction

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def cross_validate(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    model: RegionClassifier | MultiLabelClassifier | None = None,
    fold_key: str = _keys.FOLD,
    folds: Sequence[str] | None = None,
    arms: Sequence[str] = ("fused", "image", "gene"),
    nulls: bool = True,
    key_added: str | None = None,
    allow_leakage: bool = False,
    layer: str | None = None,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Score a region classifier on held-out folds, each modality alone, and the nulls.

    In every fold the chain is fitted anew on the training rows. Where test rows lie in sections of their own,
    encoders never see those sections. Where folds are blocks of one section, encoders see the whole section
    but no label of the test blocks, nor any within the buffer around them; the table says so
    (``transductive``), and also where a given image encoder had been fitted on test sections. One that was trained with
    labels of test sections leaks, as folds do that divide a donor. A modality that no labelled training row of a fold
    has predicts nothing there (``n_not_predicted``).

    Parameters
    ----------
    data
        AnnData or SpatialData object with folds from :func:`histoweave.pp.split`. Not changed unless
        ``key_added`` is given.
    labels_key
        Labels in ``obs``, or findings in ``obsm``; what is not labelled is neither trained on nor scored.
    model
        A :class:`histoweave.models.RegionClassifier` whose arguments to use; it is not fitted itself. Or a
        :class:`histoweave.models.MultiLabelClassifier`: then every finding is asked for by itself, on the same
        embeddings.
    fold_key
        Column of ``obs`` with the folds.
    folds
        Names of the folds to test on; all by default.
    arms
        ``"fused"``, ``"image"``, ``"gene"``: what to predict from. Those the data allow are scored.
    nulls
        Add what needs no tissue: majority, sequencing depth, coordinates, vote of labelled neighbours.
    key_added
        Write the held-out predictions of the first arm under this name (``obs[f"{key_added}_predicted"]``, ...); of
        findings, their probabilities (``obsm[f"{key_added}_probability"]``).
    allow_leakage
        Score folds that leak all the same; the result says so (``leakage``).
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    random_state
        Seed of the nulls; the model has its own.
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame, one row per fold and arm: ``fold``, ``arm``, ``kind`` (``"model"`` or ``"null"``),
    ``transductive``, ``n_train``, ``unseen_classes`` (test regions that no training row has), and the scores of
    :func:`histoweave.metrics.classification`. Of findings, one row per fold, finding and arm: ``finding`` as well,
    and the scores of :func:`histoweave.metrics.multilabel`.

    Raises
    ------
    KeyError
        Folds or labels are missing.
    ValueError
        The folds leak, and ``allow_leakage`` is off.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> hw.pp.split(sections, by="donor", n_folds=3)
    >>> scores = hw.tl.cross_validate(sections, model=hw.models.RegionClassifier(image=None))
    >>> sorted(scores["arm"].unique())
    ['coordinates', 'depth', 'gene', 'majority', 'neighbour vote']
    """
    for arm in arms:
        require_choice(arm, tuple(ARMS), argument="arms")
    model = model or RegionClassifier()
    runner = FoldRunner(
        data, model, labels_key=labels_key, layer=layer, library_key=library_key, donor_key=donor_key,
        spatial_key=spatial_key, table_key=table_key,
    )  # fmt: skip
    chosen, leak = runner.folds(folds, fold_key=fold_key, allow_leakage=allow_leakage)
    possible = [arm for arm in arms if runner.has(*ARMS[arm])]
    if not possible:
        msg = f"None of the arms {listing(arms)} can be scored: the table lacks the image or the counts they need."
        raise ValueError(msg)
    seeds = child_seeds(random_state, len(chosen))
    rows, held_out = [], []
    for fold, seed in zip(track(chosen, "folds", unit="fold"), seeds, strict=True):
        found = runner.embed(fold)
        for asked in runner.questions(fold):
            clf = asked.fit(found, asked.labels.where(fold.train))
            answers = {arm: asked.predict(clf, found, fold.test, ARMS[arm]) for arm in possible}
            held_out.append((asked, answers[possible[0]]))
            answers |= asked.nulls(fold, seed) if nulls else {}
            for arm, (p, prediction) in answers.items():
                about = asked.about(fold) | {"arm": arm, "kind": "model" if arm in ARMS else "null"}
                rows.append(about | asked.score(fold.test, p, prediction["predicted"]))
    if key_added is not None:
        params = {
            "labels_key": labels_key, "fold_key": fold_key, "arm": possible[0], "model": runner.model._plain_arguments()
        }  # fmt: skip
        _write(working_copy(data, table_key)[1], key_added, held_out, params)
    return pd.DataFrame(rows).assign(leakage=leak)


def _write(table: AnnData, key: str, held_out: list[tuple[FoldRunner, Answer]], params: dict[str, Any]) -> None:
    if held_out[0][0].finding is not None:
        names = list(dict.fromkeys(asked.finding for asked, _ in held_out))
        found = pd.DataFrame(np.nan, index=table.obs_names, columns=names)
        for asked, (p, prediction) in held_out:
            found.iloc[prediction.index, names.index(asked.finding)] = p[:, asked.classes.index(PRESENT)]
        table.obsm[key + _keys.PROBABILITY] = found.astype("float32")
        record(table, key + _keys.PROBABILITY, "tl.cross_validate", params, findings=list(found))
        return
    classes = held_out[0][0].classes
    frame = pd.DataFrame({"predicted": None, "confidence": np.nan, "abstain": True}, index=table.obs_names)
    probability = pd.DataFrame(np.nan, index=table.obs_names, columns=classes)
    for _, (p, prediction) in held_out:
        frame.iloc[prediction.index] = prediction[list(frame)].to_numpy()
        probability.iloc[prediction.index] = p
    write_prediction(table, key, frame, probability, "tl.cross_validate", params)
