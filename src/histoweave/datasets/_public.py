"""Public data sets, fetched once and read."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._files import atomic_path
from histoweave._image import open_image
from histoweave._record import record
from histoweave._resolve import get_table
from histoweave._validate import require_choice
from histoweave.datasets._registry import PathLike, Source

if TYPE_CHECKING:
    from spatialdata import SpatialData

PATHMNIST_CLASSES = (
    "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
    "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
)  # fmt: skip


def visium_breast(*, section: int = 1, full_image: bool = False, data_dir: PathLike | None = None) -> SpatialData:
    """Human breast cancer, block A: two serial Visium sections of one patient, without labels.

    Parameters
    ----------
    section
        1 or 2.
    full_image
        Fetch the full-resolution TIFF as well (more than a gigabyte). Crops from the hires image are coarse.
    data_dir
        Folder of the data sets; ``settings.data_dir`` by default. Files that lie there already, under the
        names that an error message gives, are not downloaded.

    Returns
    -------
    SpatialData
        As :func:`histoweave.io.read_visium` returns, section ``"breast_A1"`` or ``"breast_A2"``.

    Raises
    ------
    FileNotFoundError, ConnectionError, ValueError
        A file is missing and cannot be downloaded, or is not what was published.

    References
    ----------
    10x Genomics, Human Breast Cancer (Block A), Space Ranger 1.1.0, 2020.

    Examples
    --------
    >>> import histoweave as hw
    >>> sdata = hw.datasets.visium_breast(full_image=True)  # doctest: +SKIP
    """
    from histoweave.io import read_visium

    data = Source("visium_breast", section, data_dir)
    counts = data.fetch("counts")
    if not (counts.parent / "spatial").is_dir():
        _unpack(data.fetch("spatial"), counts.parent)
    image = data.fetch("image") if full_image else None
    return read_visium(counts.parent, library_id=f"breast_A{section}", image=image, donor=data.donor)


def dlpfc(*, section: str | int = "151673", full_image: bool = False, data_dir: PathLike | None = None) -> SpatialData:
    """Human dorsolateral prefrontal cortex: 12 Visium sections of three donors with layers.

    Parameters
    ----------
    section
        ``"151507"`` to ``"151510"``, ``"151669"`` to ``"151676"``.
    full_image, data_dir
        As in :func:`visium_breast`.

    Returns
    -------
    SpatialData
        As :func:`histoweave.io.read_visium` returns, with ``obs["region"]`` (``"L1"`` to ``"L6"``, ``"WM"``,
        missing for a few spots) and ``obs["donor"]``.

    Raises
    ------
    FileNotFoundError, ConnectionError, ValueError
        As in :func:`visium_breast`.

    References
    ----------
    Maynard et al., Nat. Neurosci. 24, 2021.

    Examples
    --------
    >>> import histoweave as hw
    >>> sdata = hw.datasets.dlpfc(section="151507")  # doctest: +SKIP
    """
    from histoweave.io import read_visium

    data = Source("dlpfc", section, data_dir)
    counts, layers = data.fetch("counts"), data.fetch("labels")
    for kind in ("positions", "scalefactors", "hires", "lowres"):
        data.fetch(kind)
    image = data.fetch("image") if full_image else None
    sdata = read_visium(counts.parent, library_id=data.section, image=image, donor=data.donor)
    labels = pd.read_csv(layers, sep="\t", names=["barcode", "section", "layer"], dtype=str)
    labels = labels[labels["section"] == data.section].set_index("barcode")["layer"]
    table = get_table(sdata)
    table.obs[_keys.REGION] = pd.Categorical(labels.reindex(table.obs_names))
    return sdata


def her2st(*, section: str = "A1", image: bool = True, data_dir: PathLike | None = None) -> SpatialData:
    """HER2-positive breast cancer: 36 legacy ST sections of eight patients, eight of them labelled.

    Parameters
    ----------
    section
        Patient and number: ``"A1"`` to ``"A6"`` (also B, C, D), ``"E1"`` to ``"E3"`` (also F, G, H).
    image
        Fetch the image.
    data_dir
        As in :func:`visium_breast`.

    Returns
    -------
    SpatialData
        As :func:`histoweave.io.read_st` returns, with ``obs["donor"]`` (the patient) and, for A1, B1, C1, D1,
        E1, F1, G2 and H1, ``obs["region"]``.

    Raises
    ------
    FileNotFoundError, ConnectionError, ValueError
        As in :func:`visium_breast`.

    References
    ----------
    Andersson et al., Nat. Commun. 12, 2021.

    Examples
    --------
    >>> import histoweave as hw
    >>> sdata = hw.datasets.her2st(section="B1")  # doctest: +SKIP
    """
    from histoweave.io import read_st

    data = Source("her2st", section, data_dir)
    return read_st(
        data.fetch("counts"), spots=data.fetch("spots"),
        image=data.fetch("image") if image else None,
        labels=data.fetch("labels") if data.has("labels") else None,
        library_id=data.section, donor=data.donor,
    )  # fmt: skip


def mob_st(*, section: str | int = "01", data_dir: PathLike | None = None) -> SpatialData:
    """Mouse olfactory bulb: 12 legacy ST sections with five layers; images and labels, no counts.

    Parameters
    ----------
    section
        ``"01"`` to ``"12"``.
    data_dir
        As in :func:`visium_breast`.

    Returns
    -------
    SpatialData
        As :func:`histoweave.io.read_st` returns, with ``obs["region"]`` and, as ``obs["donor"]``, the group
        ``"A"`` to ``"E"``: sections of one group must never be split between training and test.

    Raises
    ------
    FileNotFoundError, ConnectionError, ValueError
        As in :func:`visium_breast`.

    References
    ----------
    Stahl et al., Science 353, 2016; annotation from Splotch, Aijo et al., 2019.

    Examples
    --------
    >>> import histoweave as hw
    >>> sdata = hw.datasets.mob_st(section=5)  # doctest: +SKIP
    """
    from histoweave.io import read_st

    data = Source("mob_st", f"{section:02d}" if isinstance(section, int) else section, data_dir)
    image = data.fetch("image")
    # The array's corner spot lies at the image's corner; 194 px apart where the image is 6,200 px wide.
    pitch = 194 / 6200 * open_image(image).shape[1]
    return read_st(
        spots=lambda xy: pitch * (xy - 1), image=image, labels=data.fetch("labels"),
        library_id=data.section, donor=data.donor,
    )  # fmt: skip


def pathmnist(*, split: str = "train", size: int = 28, data_dir: PathLike | None = None) -> AnnData:
    """Labelled tiles of colorectal tissue, nine classes, one row an image.

    Parameters
    ----------
    split
        ``"train"`` (89,996 tiles), ``"val"`` (10,004), ``"test"`` (7,180, another hospital) or ``"all"``.
    size
        Side of a tile in pixels: 28, 64, 128 or 224; each is a file of its own (206 MB at 28 px).
    data_dir
        As in :func:`visium_breast`.

    Returns
    -------
    AnnData
        ``obsm["crops"]`` uint8 ``(n, size, size, 3)``, ``obs["region"]`` (class names), ``obs["split"]``, and
        ``obs["library_id"]`` (the collection the tile is from: ``"NCT-CRC-HE-100K"`` or ``"CRC-VAL-HE-7K"``).

    Raises
    ------
    FileNotFoundError, ConnectionError, ValueError
        As in :func:`visium_breast`.

    References
    ----------
    Kather et al., PLoS Med. 16, 2019; Yang et al., Sci. Data 10, 2023.

    Examples
    --------
    >>> import histoweave as hw
    >>> tiles = hw.datasets.pathmnist(split="test")  # doctest: +SKIP
    """
    splits = ("train", "val", "test")
    require_choice(split, (*splits, "all"), argument="split")
    require_choice(size, (28, 64, 128, 224), argument="size")
    data = Source("pathmnist", "pathmnist" if size == 28 else f"pathmnist_{size}", data_dir)
    chosen = splits if split == "all" else (split,)
    path = data.fetch("tiles")
    try:
        with np.load(path, allow_pickle=False) as stored:
            crops = np.concatenate([stored[f"{s}_images"] for s in chosen])
            labels = [stored[f"{s}_labels"].ravel() for s in chosen]
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        msg = f"{str(path)!r} is not the PathMNIST file ({error}). Delete it to download it again."
        raise ValueError(msg) from error
    origin = np.repeat(chosen, [len(part) for part in labels])
    names = np.array(PATHMNIST_CLASSES)
    obs = pd.DataFrame(
        {
            _keys.LIBRARY: pd.Categorical(np.where(origin == "test", "CRC-VAL-HE-7K", "NCT-CRC-HE-100K")),
            _keys.REGION: pd.Categorical(names[np.concatenate(labels)], categories=names),
            "split": pd.Categorical(origin),
        },
        index=[f"{s}_{i}" for s, part in zip(chosen, labels, strict=True) for i in range(len(part))],
    )
    table = AnnData(obs=obs, obsm={_keys.CROPS: crops})
    record(table, _keys.CROPS, "datasets.pathmnist", {"split": split, "size": size})
    return table


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the ``spatial/`` folder of an archive into ``folder``, whole or not at all."""
    with atomic_path(folder / "spatial") as temporary:
        temporary.mkdir()
        try:
            with tarfile.open(archive) as content:
                content.extractall(temporary, filter="data")
        except (tarfile.TarError, zlib.error, EOFError) as error:
            reason = str(error).splitlines()[0]
            msg = f"{str(archive)!r} cannot be unpacked ({reason}). Delete it to download it again."
            raise ValueError(msg) from error
        inner = temporary / "spatial"
        if inner.is_dir():
            for path in inner.iterdir():
                shutil.move(path, temporary / path.name)
            inner.rmdir()
