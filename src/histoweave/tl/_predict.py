"""Map the regions of a section with a fitted classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from histoweave import _keys
from histoweave._resolve import sections, working_copy
from histoweave.models import RegionClassifier
from histoweave.tl._write import write_prediction

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def predict_regions(
    data: AnnData | SpatialData,
    model: RegionClassifier,
    *,
    modalities: Sequence[str] | None = None,
    key_added: str = _keys.REGION,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Predict the region of every spot with a fitted :class:`histoweave.models.RegionClassifier`.

    Parameters
    ----------
    data
        AnnData or SpatialData object: whole sections, with an image or crops, with raw counts, or with both.
    model
        The fitted classifier.
    modalities
        Use only these, ``"image"`` or ``"gene"``.
    key_added
        Beginning of the names of the results.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed copy. With ``key = key_added``, writes ``obs[f"{key}_predicted"]``,
    ``obs[f"{key}_confidence"]``, ``obs[f"{key}_abstain"]``, ``obs[f"{key}_modalities"]`` (what the spot was
    predicted from), ``obs[f"{key}_novelty"]`` (how unlike the training spots it is, 1 at the limit),
    ``obs[f"{key}_out_of_distribution"]`` (beyond it), ``obsm[f"{key}_probability"]``, ``uns[f"{key}_novelty"]``
    (the verdict on every section, see ``model.novelty``) and the record in ``uns["histoweave"]``, which names the
    sections of ``data`` that the model saw in training. Warns of sections unlike those it was fitted on.

    Raises
    ------
    TypeError
        ``model`` is something else.
    RuntimeError
        The model is not fitted.
    ValueError
        The section has nothing that the model was fitted on.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(labelled_fraction=0.3)
    >>> clf = hw.models.RegionClassifier(image=None).fit(adata)
    >>> hw.tl.predict_regions(adata, clf)
    >>> adata.obs["region_modalities"].unique().tolist()
    ['gene']
    """
    if not isinstance(model, RegionClassifier):
        msg = f"`model` must be a `hw.models.RegionClassifier`, got {type(model).__name__}."
        raise TypeError(msg)
    out, table = working_copy(data, table_key, copy=copy)
    keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
    prediction, probability, verdicts = model._predict(data, modalities, **keys)
    table.obs[f"{key_added}_modalities"] = prediction["modalities"].astype("category").to_numpy()
    table.obs[key_added + _keys.NOVELTY] = prediction["novelty"].to_numpy()
    table.obs[key_added + _keys.OUT_OF_DISTRIBUTION] = prediction["out_of_distribution"].to_numpy()
    table.uns[key_added + _keys.NOVELTY] = verdicts
    here = sections(table, library_key)
    write_prediction(
        table,
        key_added,
        prediction,
        probability,
        "tl.predict_regions",
        {"modalities": modalities},
        sections_seen=model.sections_seen,
        seen_in_training=[s for s in here if s in model.sections_seen],
    )
    return out if copy else None
