"""Every image kind against the array that was written, every unreadable file against its error."""

from __future__ import annotations

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from histoweave._image import open_image, to_rgb8


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (620, 700, 3), dtype=np.uint8)


def planes(rgb):
    return np.ascontiguousarray(np.moveaxis(rgb, -1, 0))


TIFFS = {
    "plain": ({"photometric": "rgb"}, None),
    "tiled": ({"photometric": "rgb", "tile": (256, 256), "compression": "deflate"}, None),
    "tiled, not compressed": ({"photometric": "rgb", "tile": (128, 128), "bigtiff": True}, None),
    "strips": ({"photometric": "rgb", "rowsperstrip": 16, "compression": "lzw"}, None),
    "one strip": ({"photometric": "rgb", "rowsperstrip": 620, "compression": "deflate"}, None),
    "big-endian": ({"photometric": "rgb", "byteorder": ">"}, None),
    "planar": ({"photometric": "rgb", "planarconfig": "separate"}, planes),
    "planar, tiled": (
        {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 64), "compression": "lzw"},
        planes,
    ),
    "pages": ({"photometric": "minisblack"}, planes),
    "OME, c y x": ({"photometric": "minisblack", "ome": True, "metadata": {"axes": "CYX"}}, planes),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_is_lazy_and_exact(tmp_path, rgb, kind):
    options, arrange = TIFFS[kind]
    path = tmp_path / "Schnitt-ä β.tif"
    tifffile.imwrite(path, arrange(rgb) if arrange else rgb, **options)
    image = open_image(path)
    assert isinstance(image, da.Array)
    assert image.shape == rgb.shape
    np.testing.assert_array_equal(image.compute(), rgb)
    assert len(pickle.dumps(image)) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(image))[100:130, 600:].compute(), rgb[100:130, 600:])


def test_jpeg_tiles_come_back_as_rgb(tmp_path):
    """Stored as luminance and chroma, as scanners do."""
    y, x = np.mgrid[:300, :400] / 400
    smooth = (np.stack([x, y, 1 - x], axis=-1) * 255).astype(np.uint8)
    options = {"tile": (128, 128), "compression": "jpeg", "compressionargs": {"level": 95}}
    tifffile.imwrite(tmp_path / "a.svs", smooth, photometric="rgb", **options)
    assert tifffile.TiffFile(tmp_path / "a.svs").pages[0].photometric.name == "YCBCR"
    assert np.abs(open_image(tmp_path / "a.svs").compute() - smooth.astype(float)).mean() < 1


def test_tiff_chunks_stay_small(tmp_path):
    path = tmp_path / "wide.tif"
    tifffile.imwrite(path, np.zeros((3000, 20_000), "u1"), rowsperstrip=8, compression="deflate")
    assert np.prod(open_image(path).chunksize) <= 2**21
    assert open_image(path).chunksize[0] % 8 == 0


def test_tiff_is_read_from_several_threads(tmp_path, rgb):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(64, 64), compression="deflate")
    image = open_image(path)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda y: image[y : y + 20].compute(scheduler="sync"), range(0, 620, 20)))
    np.testing.assert_array_equal(np.concatenate(rows), rgb)


def test_the_finest_level_of_a_pyramid(tmp_path, rgb):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(rgb, photometric="rgb", tile=(128, 128), subifds=1, compression="deflate")
        file.write(rgb[::2, ::2].copy(), photometric="rgb", tile=(128, 128), subfiletype=1, compression="deflate")
    np.testing.assert_array_equal(open_image(path).compute(), rgb)


def test_the_largest_series_is_the_section(tmp_path, rgb):
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as file:
        file.write(rgb[:50, :60].copy(), photometric="rgb", metadata=None)  # a label photograph
        file.write(rgb, photometric="rgb", tile=(128, 128), metadata=None)
    np.testing.assert_array_equal(open_image(path).compute(), rgb)


def test_white_is_zero(tmp_path, rgb):
    tifffile.imwrite(tmp_path / "a.tif", rgb[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").compute()[..., 0], 255 - rgb[..., 0])


def test_opacity_stored_multiplied(tmp_path, rgb):
    alpha = np.full((*rgb.shape[:2], 1), 102, np.uint8)
    stored = np.concatenate([np.rint(rgb * (102 / 255)).astype("u1"), alpha], axis=2)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    expected = np.rint(rgb * 0.4 + 255 * 0.6)
    assert np.abs(to_rgb8(open_image(tmp_path / "a.tif")).compute() - expected).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_plain_formats(tmp_path, rgb, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb).save(path)
    image = open_image(path)
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))


def test_plain_format_above_the_size_limit_of_pillow(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert open_image(tmp_path / "a.png").shape == (300, 300, 1)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_plain_modes(tmp_path, rgb):
    picture = Image.fromarray(rgb)
    picture.quantize(16).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(open_image(tmp_path / "palette.png"), np.asarray(picture.quantize(16).convert("RGB")))
    picture.convert("LA").save(tmp_path / "la.png")
    assert open_image(tmp_path / "la.png").shape[2] == 4
    Image.fromarray(rgb[..., 0] > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(open_image(tmp_path / "bits.png")[..., 0], (rgb[..., 0] > 128) * 255)
    grey16 = rgb[..., 0].astype("u2") * 257
    Image.fromarray(grey16).save(tmp_path / "grey16.png")
    np.testing.assert_array_equal(to_rgb8(open_image(tmp_path / "grey16.png"))[..., 1], rgb[..., 0])


@pytest.mark.parametrize("order", ["y x c", "c y x", "y x"])
def test_zarr_array(tmp_path, rgb, order):
    stored = {"y x c": rgb, "c y x": planes(rgb), "y x": rgb[..., 0]}[order]
    zarr.save_array(str(tmp_path / "a.zarr"), stored)
    image = open_image(tmp_path / "a.zarr")
    assert isinstance(image, da.Array)
    np.testing.assert_array_equal(image.compute(), rgb[..., :1] if order == "y x" else rgb)


def test_ome_zarr_group(tmp_path, rgb):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    group.create_array("s0", data=planes(rgb)[None])
    group.create_array("s1", data=planes(rgb)[None, :, ::2, ::2])
    axes = [{"name": n} for n in "tcyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [{"path": "s0"}, {"path": "s1"}]}]
    np.testing.assert_array_equal(open_image(tmp_path / "a.zarr").compute(), rgb)
    zarr.open_group(str(tmp_path / "b.zarr"), mode="w").create_array("s0", data=rgb)
    with pytest.raises(ValueError, match=r"b\.zarr.*multiscales"):
        open_image(tmp_path / "b.zarr")


def test_slides_go_through_openslide(tmp_path, rgb):
    pytest.importorskip("openslide")
    from histoweave._image_readers import open_slide

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", tile=(256, 256), compression="deflate")
    np.testing.assert_array_equal(to_rgb8(open_slide(path)).compute(), rgb)


def test_slide_errors(tmp_path, monkeypatch):
    path = tmp_path / "a.mrxs"
    path.write_bytes(b"no slide")
    if "openslide" in sys.modules or pytest.importorskip("openslide"):
        with pytest.raises(ValueError, match=r"a\.mrxs"):
            open_image(path)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ImportError, match=r"histoweave\[wsi\]"):
        open_image(path)


def test_missing_truncated_and_no_image(tmp_path, rgb):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="is a folder"):
        open_image(tmp_path)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(rgb).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:5000])
        with pytest.raises(ValueError, match=rf"{name}.*truncated"):
            open_image(tmp_path / name)
    for name in ("b.png", "b.jpg", "b.tif", "b.xyz"):
        (tmp_path / name).write_text("this is no image at all, whatever its name says")
        with pytest.raises(ValueError, match=name):
            open_image(tmp_path / name)
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.tif"):
        open_image(tmp_path / "empty.tif")


@pytest.mark.parametrize("options", [{"tile": (128, 128), "compression": "deflate"}, {}])
@pytest.mark.parametrize("kept", [6, 300, 0.5, 0.99])
def test_truncated_tiff(tmp_path, rgb, options, kept):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", **options)
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"a\.tif"):
        open_image(path)


def test_tiffs_that_hold_no_colours(tmp_path, rgb):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, planes(rgb), photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(ValueError, match="axes ZYX"):
        open_image(path)
    tifffile.imwrite(path, np.stack([rgb[..., 0]] * 4), photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(ValueError, match="four channels"):
        open_image(path)
    tifffile.imwrite(tmp_path / "p.tif", rgb[..., 0], photometric="palette", colormap=np.zeros((3, 256), "u2"))
    with pytest.raises(ValueError, match="PALETTE"):
        open_image(tmp_path / "p.tif")


def both(pixels, chunks=(300, 300, 1)):
    """The result for a NumPy array, after checking that a Dask array gives the same."""
    plain = to_rgb8(pixels)
    lazy = to_rgb8(da.from_array(pixels, chunks=chunks[: pixels.ndim]))
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == np.uint8
    assert lazy.shape == plain.shape
    np.testing.assert_array_equal(lazy.compute(), plain)
    return plain


def test_rgb8_is_left_alone(rgb):
    assert to_rgb8(rgb) is rgb
    both(rgb)


def test_grey_is_repeated(rgb):
    for grey in (rgb[..., 0], rgb[..., :1]):
        np.testing.assert_array_equal(both(grey), np.repeat(rgb[..., :1], 3, axis=2))


def test_opacity_is_laid_over_white(rgb):
    alpha = np.random.default_rng(1).integers(0, 256, (*rgb.shape[:2], 1), dtype=np.uint8)
    background = Image.new("RGBA", (700, 620), "white")
    background.alpha_composite(Image.fromarray(np.concatenate([rgb, alpha], axis=2)))
    difference = both(np.concatenate([rgb, alpha], axis=2)).astype(int) - np.asarray(background)[..., :3]
    assert np.abs(difference).max() <= 1


def test_sixteen_bit_and_float(rgb):
    np.testing.assert_array_equal(both(rgb.astype("u2") * 257), rgb)
    every = np.arange(65536, dtype="u2").reshape(256, 256)
    np.testing.assert_array_equal(to_rgb8(every)[..., 0], np.rint(every / 257))
    np.testing.assert_array_equal(to_rgb8(rgb.astype(">u2") * 257), rgb)
    for kind in ("f2", "f4", "f8"):
        np.testing.assert_array_equal(both((rgb / 255).astype(kind)), rgb)


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1, np.inf])
def test_float_outside_its_range(value):
    pixels = np.full((10, 10, 3), 0.5)
    pixels[3, 4, 1] = value
    with pytest.raises(ValueError, match=r"0\.\.1"):
        to_rgb8(pixels)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        to_rgb8(da.from_array(pixels)).compute()


@pytest.mark.parametrize("dtype", ["bool", "i8", "i4", "u4", "c8"])
def test_other_types(dtype):
    with pytest.raises(ValueError, match="uint8, uint16"):
        to_rgb8(np.zeros((5, 5, 3), dtype))


@pytest.mark.parametrize("shape", [(5, 5, 2), (5, 5, 7), (3, 50, 50), (5,), (1, 5, 5, 3)])
def test_other_shapes(shape):
    with pytest.raises(ValueError, match="shape"):
        to_rgb8(np.zeros(shape, "u1"))
