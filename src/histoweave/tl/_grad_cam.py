"""Explain what image networks look at, and write the maps back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._device import resolve_device
from histoweave._random import rng
from histoweave._record import record
from histoweave._resolve import working_copy
from histoweave._validate import listing, require_choice, require_number, warn
from histoweave.loaders import require_crops
from histoweave.models.explanation import _attribution
from histoweave.models.explanation._checks import check_maps
from histoweave.models.explanation._scorer import MapsOf, Scorer, as_scorer, explain_crops

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from histoweave.models import ImageClassifier, ImageEncoder
    from histoweave.models.explanation._scorer import ImageNetwork

    Explainable = ImageClassifier | ImageEncoder | ImageNetwork

METHODS = ("grad_cam", "occlusion")
PREDICTED = "predicted"


def grad_cam(
    data: AnnData | SpatialData,
    *,
    model: Explainable | Mapping[str, Explainable],
    method: str = "grad_cam",
    target: str | Sequence[str] = PREDICTED,
    layers: str | Sequence[str] | None = None,
    rows: Iterable[Any] | None = None,
    crops_key: str | None = None,
    labels_key: str = _keys.REGION,
    key_added: str = _keys.GRAD_CAM,
    checks: bool = False,
    n_checked: int = 64,
    batch_size: int = 64,
    device: str = "auto",
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame | None:
    """Show where in its crop a network finds the evidence for a class.

    Parameters
    ----------
    data
        AnnData or SpatialData object with crops.
    model
        What is explained: a fitted :class:`histoweave.models.ImageClassifier`; an
        :class:`histoweave.models.ImageEncoder` with a network, which gets a linear head here, fitted on all labelled
        rows; or any model with a ``network`` from pictures to class logits, its ``classes`` and ``crops_keys``. A
        dictionary of models compares them.
    method
        ``"grad_cam"`` (Selvaraju et al., 2017): channels of a layer weighted by the mean gradient of the class's
        logit, positive part. ``"occlusion"`` (Zeiler and Fergus, 2014): how much the logit falls when one of 8 x 8
        cells of the crop is hidden; slower, and without any assumption on the network.
    target
        The class to explain: ``"predicted"``, the most probable one of each row, or the name of a class. Several
        names give several maps.
    layers
        Layers of Grad-CAM by their name in timm, such as ``"layer3"`` (ResNet), ``"stages.2"`` (ConvNeXt) or
        ``"blocks.11.norm1"`` (ViT); several give several maps, ``"all"`` one for every stage. Default: the deepest
        stage whose map has at least 4 x 4 cells.
    rows
        Rows to explain: their names, their numbers, or a mask. Default: all rows with crops.
    crops_key
        Crops in ``obsm``. Default: the first that the model uses.
    labels_key
        Labels in ``obs`` for the linear head of an encoder.
    key_added
        Name of the maps in ``obsm``. Where there are several models, targets or layers, their names follow:
        ``"grad_cam_simclr_tumour_layer3"``.
    checks
        Return a table that says whether the maps can be believed.
    n_checked
        Crops to check, chosen at random; the network is applied to each about 90 times.
    batch_size
        Crops at a time.
    device
        As :data:`histoweave.settings`. Always in float32.
    random_state
        Seed of the head and the checks.
    library_key
        Column of ``obs`` that names the section.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    None, or with ``checks`` a tidy DataFrame: ``model``, ``target``, ``layer``, ``check``, ``value``, ``null``, ``n``.
    ``deletion_area`` (better below its null) and ``insertion_area`` (better above it) are areas under the class's
    probability, see :func:`histoweave.metrics.perturbation`; their null is the same map with its cells in random
    places. ``randomised_spearman`` and ``randomised_ssim`` compare with maps of the same network with random weights,
    see :func:`histoweave.metrics.map_similarity`; far above their null, the maps of other crops (NaN of one
    crop alone), they say that a map shows the picture and not what was learned.

    Writes ``obsm[key_added]``, the maps ``(n_obs, h, w)`` float32 at the layer's own resolution, in units of the logit
    (NaN for rows that are not explained), the class in ``obs[key_added + "_class"]``, its probability in
    ``obs[key_added + "_probability"]``, and ``uns["histoweave"][key_added]``.

    Raises
    ------
    KeyError
        There are no such crops or labels.
    TypeError
        The model has no network with class logits.
    ValueError
        The encoder has no gradients, or the class, the layer or the rows do not exist.
    RuntimeError
        A GPU was asked for where there is none.

    Notes
    -----
    Maps are coarse. Their cells are taken as equal parts of the crop, while strided convolutions look up to half a
    cell further up and left; where places matter, compare with an earlier layer or with occlusion.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=8, n_cols=8)
    >>> hw.pp.crops(adata, out_px=32)
    >>> encoder = hw.models.ImageEncoder("simclr", backbone="tiny", batch_size=64, n_components=8, max_epochs=1)
    >>> hw.tl.grad_cam(adata, model=encoder.fit(adata))
    >>> adata.obsm["grad_cam"].shape
    (64, 4, 4)
    """
    require_choice(method, METHODS, argument="method")
    require_number(batch_size, argument="batch_size", at_least=1, integer=True)
    require_number(n_checked, argument="n_checked", at_least=2, integer=True)
    device = resolve_device(device)
    _, table = working_copy(data, table_key)
    models = dict(model) if isinstance(model, Mapping) else {"": model}
    targets = [target] if isinstance(target, str) else list(target)
    wanted = None if rows is None else _row_numbers(table, rows)
    keys = {"labels_key": labels_key, "library_key": library_key}
    results: dict[str, _Result] = {}
    scores: list[dict[str, Any]] = []
    for name, one in models.items():
        scorer = as_scorer(one, table, crops_key=crops_key, device=device, random_state=random_state, **keys)
        for value in targets:
            require_choice(value, [PREDICTED, *scorer.classes], argument="target")
        crops, available = require_crops(table, scorer.crops_key)
        chosen = _with_crops(wanted, available, scorer.crops_key)
        ways = _ways(scorer.network, crops.shape[1:3], method, layers)
        made = explain_crops(scorer, crops, chosen, targets, ways, batch_size=batch_size, device=device)
        for (value, layer), parts in made.items():
            result = _Result(chosen, *parts, scorer, value, layer)
            if checks:
                some = np.sort(rng(random_state).permutation(len(chosen))[:n_checked])
                images = np.stack([np.asarray(crops[row]) for row in chosen[some]])
                checked = check_maps(scorer.network, ways[layer], images, result.numbers[some],
                                     batch_size=batch_size, device=device, random_state=random_state)  # fmt: skip
                scores += [{"model": name, "target": value, "layer": layer} | line for line in checked]
            several = ((name, len(models)), (value, len(targets)), (layer, len(ways)))
            key = "_".join([key_added, *(part for part, n in several if n > 1)]).replace("/", "_")
            results[key] = result
    for key, result in results.items():
        result.write(table, key, {"method": method, "labels_key": labels_key}, random_state)
    return pd.DataFrame(scores) if checks else None


@dataclass(frozen=True)
class _Result:
    """Maps of some rows, and the class that each explains."""

    rows: np.ndarray
    maps: np.ndarray
    numbers: np.ndarray
    probability: np.ndarray
    scorer: Scorer
    target: str
    layer: str

    def write(self, table: AnnData, key: str, params: dict[str, Any], random_state: int) -> None:
        maps = np.full((table.n_obs, *self.maps.shape[1:]), np.nan, dtype=np.float32)
        probability = np.full(table.n_obs, np.nan)
        numbers = np.full(table.n_obs, -1)
        maps[self.rows], probability[self.rows], numbers[self.rows] = self.maps, self.probability, self.numbers
        table.obsm[key] = maps
        table.obs[key + _keys.EXPLAINED_CLASS] = pd.Categorical.from_codes(numbers, list(self.scorer.classes))
        table.obs[key + _keys.EXPLAINED_PROBABILITY] = probability
        params = params | {"target": self.target, "layer": self.layer, "crops_key": self.scorer.crops_key}
        record(table, key, "tl.grad_cam", params, random_state=random_state, packages=("torch", "captum"),
               classes=list(self.scorer.classes), n_explained=len(self.rows))  # fmt: skip


def _row_numbers(table: AnnData, rows: Iterable[Any]) -> np.ndarray:
    values = np.asarray(list(rows))
    if values.dtype == bool and values.shape == (table.n_obs,):
        return np.flatnonzero(values)
    if (
        values.dtype.kind in "iu"
        and values.ndim == 1
        and values.size
        and 0 <= values.min() <= values.max() < table.n_obs
    ):
        return np.unique(values)
    numbers = table.obs_names.get_indexer(values.ravel().astype(str))
    if not values.size or (numbers < 0).any():
        missing = values.ravel()[numbers < 0]
        msg = (
            f"`rows` must be names of rows, numbers below {table.n_obs} or a mask of that length; not found: "
            f"{listing(missing, 4)}; names: {listing(table.obs_names, 4)}."
        )
        raise ValueError(msg)
    return np.unique(numbers)


def _with_crops(wanted: np.ndarray | None, available: np.ndarray, crops_key: str) -> np.ndarray:
    rows = np.flatnonzero(available) if wanted is None else wanted[available[wanted]]
    if not len(rows):
        msg = f"None of the rows has crops in `adata.obsm[{crops_key!r}]`. Run `hw.pp.crops(...)` on their sections."
        raise ValueError(msg)
    if wanted is not None and len(rows) < len(wanted):
        warn(f"{len(wanted) - len(rows)} of {len(wanted)} rows have no crops in {crops_key!r}; their maps are NaN.")
    return rows


def _ways(network: Any, shape: tuple[int, int], method: str, layers: Any) -> dict[str, MapsOf]:
    """Return what makes the maps, by the name of the layer."""
    if method == "occlusion":
        if layers is not None:
            msg = f"`layers={layers!r}` is for `method='grad_cam'`; occlusion looks at the whole network."
            raise ValueError(msg)
        return {"": _attribution.occlusion}
    names = _attribution.choose_layers(network, shape, layers)
    return {name: partial(_attribution.grad_cam, layer=name) for name in names}
