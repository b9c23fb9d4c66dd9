"""One opener per family of image files: a path in, ``(height, width, channels)`` as stored out."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import dask.array as da

_APERIO_JPEG2000_YCC = 33003
_PIL_LOCK = threading.Lock()


class _FileArray:
    """An array over a file, opened on first use in each process: a path in the graph, never pixels."""

    def __init__(self, opener: Callable[[str], Any], path: Path) -> None:
        self.opener, self.path, self._lock, self._source = opener, str(path), threading.Lock(), None
        self.shape, self.dtype, self.ndim = self.source.shape, self.source.dtype, len(self.source.shape)

    @property
    def source(self) -> Any:
        with self._lock:
            if self._source is None:
                self._source = self.opener(self.path)
        return self._source

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.source[index])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_source": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"_lock": threading.Lock()}


def _lazy(opener: Callable[[str], Any], path: Path, y: int, x: int) -> da.Array:
    """Make a Dask array over a file; ``y`` and ``x`` are the numbers of its image axes."""
    import dask.array as da
    from dask.base import tokenize

    array = _FileArray(opener, path)
    stored = getattr(array.source, "chunks", None) or array.shape
    if isinstance(array.source, np.memmap):
        stored = (1,) * array.ndim
    chunks = list(array.shape)
    chunks[x] = _grown(stored[x], 512, array.shape[x])
    # strips span the width: fewer rows a chunk keep the chunk about as small as a square one
    chunks[y] = _grown(stored[y], max(64, min(512, 2**21 // chunks[x])), array.shape[y])
    stat = path.stat()
    name = f"image-{tokenize(str(path.resolve()), stat.st_mtime_ns, stat.st_size)}"
    return da.from_array(array, chunks=tuple(chunks), name=name, meta=np.empty((0,) * array.ndim, array.dtype))


def _grown(stored: int, target: int, length: int) -> int:
    """Return the multiple of the stored chunk that is nearest above the target."""
    return min(length, stored * -(-target // stored))


def _channels_last(array: da.Array, y: int, x: int) -> da.Array:
    channel = [i for i in range(array.ndim) if i not in (y, x)]
    return array.transpose(y, x, *channel) if channel else array[..., None]


# --- TIFF ---


def _finest_series(file: Any) -> Any:
    return max(file.series, key=lambda s: s.sizes.get("height", 0) * s.sizes.get("width", 0)).levels[0]


def _tiff_source(path: str) -> Any:
    """Open the finest level: a memory map where values lie plainly in the file, a Zarr array elsewhere."""
    import tifffile
    import zarr

    file = tifffile.TiffFile(path)
    series = _finest_series(file)
    if series.dataoffset is not None and series.keyframe.is_memmappable:
        source = np.memmap(path, series.dtype.newbyteorder(file.byteorder), "r", series.dataoffset, series.shape)
        file.close()
        return source
    return zarr.open(series.aszarr(level=0), mode="r")


def open_tiff(path: Path) -> da.Array | np.ndarray:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = _finest_series(file)
            axes = series.axes
            page = series.keyframe
            if page.compression == _APERIO_JPEG2000_YCC:  # tifffile leaves these as luminance and chroma
                return open_slide(path)
            _check_tiff(path, series)
    except (tifffile.TiffFileError, struct.error, IndexError, KeyError) as error:
        msg = f"{str(path)!r} is not a TIFF image that can be read: {error}. Is it truncated?"
        raise ValueError(msg) from error
    y, x = axes.index("Y"), axes.index("X")
    array = _channels_last(_lazy(_tiff_source, path, y, x), y, x)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        array = np.iinfo(array.dtype).max - array
    if tifffile.EXTRASAMPLE.ASSOCALPHA in page.extrasamples and array.shape[2] == 4:
        array = array.rechunk({2: -1}).map_blocks(_over_white, dtype=array.dtype, chunks=(*array.chunks[:2], (3,)))
    return array


def _over_white(pixels: np.ndarray) -> np.ndarray:
    """Lay colours that were stored multiplied by their opacity over white."""
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    white = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else pixels.dtype.type(1)
    return np.minimum(colour, alpha) + (white - alpha)


def _check_tiff(path: Path, series: Any) -> None:
    from tifffile import COMPRESSION, PHOTOMETRIC

    page, axes = series.keyframe, series.axes
    others = [(a, n) for a, n in zip(axes, series.shape, strict=True) if a not in "YX"]
    if "Y" not in axes or "X" not in axes or len(others) > 1 or (others and others[0][0] not in "SCQI"):
        msg = (
            f"{str(path)!r} has axes {axes} of lengths {series.shape}; one plane of grey or RGB is needed. "
            "Save the plane and channels to use as a TIFF of their own."
        )
        raise ValueError(msg)
    jpeg = page.compression in (COMPRESSION.JPEG, COMPRESSION.OJPEG)
    known = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)
    if page.photometric not in known and not (page.photometric == PHOTOMETRIC.YCBCR and jpeg):
        kind = getattr(page.photometric, "name", page.photometric)
        msg = f"{str(path)!r} stores {kind} values, not grey or RGB. Convert it to RGB first."
        raise ValueError(msg)
    if others and others[0][1] == 4 and page.photometric != PHOTOMETRIC.RGB:
        msg = (
            f"{str(path)!r} has four channels that are not RGB with opacity (fluorescence?). "
            "Save the three channels to use as an RGB image."
        )
        raise ValueError(msg)
    ends = (
        offset + size
        for p in series.pages
        if p is not None
        for offset, size in zip(p.dataoffsets, p.databytecounts, strict=False)
    )
    end, size = max(ends, default=0), path.stat().st_size
    if end > size or not any(page.dataoffsets):
        where = f"its image ends at byte {end:,}" if end > size else "the position of its image is missing"
        msg = f"{str(path)!r} is truncated: {where} and the file has {size:,} bytes. Copy it again."
        raise ValueError(msg)


# --- Zarr ---


def _zarr_source(path: str) -> Any:
    import zarr

    node = zarr.open(path, mode="r")
    if isinstance(node, zarr.Group):
        scales = _multiscales(node)
        node = node[scales["datasets"][0]["path"]] if scales else node
    return node


def _multiscales(node: Any) -> dict[str, Any]:
    attributes = dict(node.attrs)
    found = attributes.get("ome", attributes).get("multiscales", [])
    return found[0] if found else {}


def _zarr_axes(node: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the numbers of the image axes: by name in OME-Zarr, else by which axis is short."""
    axes = _multiscales(node).get("axes", [])
    names = [axis["name"] if isinstance(axis, dict) else axis for axis in axes]
    if len(names) == len(shape) and {"y", "x"} <= set(names):
        return names.index("y"), names.index("x")
    if len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4):
        return 0, 1
    return len(shape) - 2, len(shape) - 1


def open_zarr(path: Path) -> da.Array:
    import zarr

    try:
        node, source = zarr.open(str(path), mode="r"), _zarr_source(str(path))
    except (FileNotFoundError, KeyError, ValueError) as error:
        msg = f"{str(path)!r} is not a Zarr array or an OME-Zarr image: {error}."
        raise ValueError(msg) from error
    if isinstance(source, zarr.Group):
        msg = f"{str(path)!r} is a Zarr group without multiscales; name the array in it, e.g. '{path}/0'."
        raise ValueError(msg)
    shape = source.shape
    y, x = _zarr_axes(node, shape)
    extra = [shape[i] for i in range(len(shape)) if i not in (y, x)]
    if any(n != 1 for n in extra[:-1]) or (extra and extra[-1] > 4):
        msg = f"{str(path)!r} has shape {shape}; (y, x), (y, x, channels) or (channels, y, x) is needed."
        raise ValueError(msg)
    array = _lazy(_zarr_source, path, y, x)
    while array.ndim > 3:
        array, y, x = array[0], y - 1, x - 1
    return _channels_last(array, y, x)


# --- Other whole-slide formats, through OpenSlide ---


class _Slide:
    """The finest level of a slide as an RGBA array; what was never scanned is transparent."""

    def __init__(self, path: str) -> None:
        try:
            import openslide
        except ImportError as error:
            msg = f"Reading {path!r} needs OpenSlide. Run `pip install 'histoweave[wsi]'`."
            raise ImportError(msg) from error
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            msg = f"{path!r} is not a slide that OpenSlide can read: {error}."
            raise ValueError(msg) from error
        width, height = self._slide.dimensions
        self.shape, self.dtype, self.chunks = (height, width, 4), np.dtype(np.uint8), (512, 512, 4)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        rows, columns = (s.indices(n) for s, n in zip(index[:2], self.shape[:2], strict=True))
        size = (columns[1] - columns[0], rows[1] - rows[0])
        rgba = np.asarray(self._slide.read_region((columns[0], rows[0]), 0, size))
        return rgba[..., index[2] if len(index) > 2 else slice(None)]


def open_slide(path: Path) -> da.Array:
    return _lazy(_Slide, path, 0, 1)


# --- PNG, JPEG and whatever else Pillow knows ---


def open_plain(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with _PIL_LOCK:  # sections are larger than what Pillow takes for an attack; its limit is a global
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with image:
            if image.mode in ("LA", "PA", "La", "RGBa") or (image.mode == "P" and "transparency" in image.info):
                image = image.convert("RGBA")
            elif image.mode == "1":
                image = image.convert("L")
            elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
                image = image.convert("RGB")
            pixels = np.asarray(image)
    except UnidentifiedImageError as error:
        msg = f"{str(path)!r} is not an image that can be read (PNG, JPEG, TIFF, Zarr or a whole-slide format)."
        raise ValueError(msg) from error
    except (OSError, SyntaxError, struct.error) as error:  # what Pillow raises for damaged files
        msg = f"{str(path)!r} cannot be read as an image: {error}. Is it truncated? Copy it again."
        raise ValueError(msg) from error
    return pixels if pixels.ndim == 3 else pixels[..., None]
