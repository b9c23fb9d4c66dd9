"""Draw random views of some crops, to be looked at before a network is trained on them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from histoweave import _keys
from histoweave._random import rng, torch_generator
from histoweave._record import record
from histoweave._resolve import working_copy
from histoweave._validate import require_number
from histoweave.loaders import Augmentation, augment, augmentation, crop_batches, require_crops, sample_parameters

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def augmentations(
    data: AnnData | SpatialData,
    *,
    preset: str | Augmentation = "histology",
    crops_key: str = _keys.CROPS,
    n: int = 4,
    n_views: int = 6,
    key_added: str = "augmentations",
    random_state: int = 0,
    table_key: str = _keys.TABLE,
) -> None:
    """Draw random views of a few crops, as training does.

    Parameters
    ----------
    data
        AnnData or SpatialData object with crops.
    preset
        ``"histology"``, ``"radiograph"``, ``"light"``, or a ``histoweave.loaders.Augmentation``.
    crops_key
        Crops in ``obsm``.
    n
        Crops, chosen at random.
    n_views
        Views of each.
    key_added
        Name of the result in ``uns``.
    random_state
        Seed.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    None. Writes ``uns[key_added]``: ``views``, the crops followed by their views ``(n, 1 + n_views, height, width, 3)``
    uint8, and ``names``, the names of their rows. Look at them with :func:`histoweave.pl.augmentations`.

    Raises
    ------
    KeyError
        There are no such crops.
    ValueError
        There is no such preset, or no row has crops.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=8, n_cols=8)
    >>> hw.pp.crops(adata, out_px=32)
    >>> hw.tl.augmentations(adata, n=2, n_views=3)
    >>> adata.uns["augmentations"]["views"].shape
    (2, 4, 32, 32, 3)
    """
    for name, value in (("n", n), ("n_views", n_views)):
        require_number(value, argument=name, at_least=1, integer=True)
    aug = augmentation(preset)
    _, table = working_copy(data, table_key)
    crops, available = require_crops(table, crops_key)
    if not available.any():
        msg = f"No row has crops in `adata.obsm[{crops_key!r}]`. Run `hw.pp.crops(...)` on a section with an image."
        raise ValueError(msg)
    rows = np.sort(rng(random_state).permutation(np.flatnonzero(available))[:n])
    views = []
    generator = torch_generator(random_state)
    for _, batch in crop_batches(crops, rows):
        drawn = augment(batch.repeat_interleave(n_views, 0), sample_parameters(aug, n_views * len(batch), generator))
        drawn = (255 * drawn).round().byte().permute(0, 2, 3, 1).unflatten(0, (len(batch), n_views)).numpy()
        views.append(np.concatenate([batch.numpy()[:, None], drawn], axis=1))
    table.uns[key_added] = {"views": np.concatenate(views), "names": table.obs_names[rows].to_numpy(dtype=str)}
    params = {"preset": asdict(aug), "crops_key": crops_key}
    record(table, key_added, "tl.augmentations", params, random_state=random_state)
