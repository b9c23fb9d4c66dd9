"""What the pictures share: one colour a class, spots in data units, a small image under them, a scale bar."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._calibration import nearest_distance, section_entry, um_per_pixel
from histoweave._resolve import SectionImage, has_image, section_image
from histoweave._validate import label_name, listing, require_key, require_number, warn

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from spatialdata import SpatialData

# Okabe & Ito (2008), reordered so that the first few stand out on pink tissue, then five chosen to stay apart
# from them, each other and MISSING: 10 or more CIEDE2000 units, also without red, green or blue cones
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#F0E442",
    "#CC79A7", "#000000", "#803300", "#B3E6B3", "#4D664D", "#3B0066",
)  # fmt: skip
MISSING = "#B8B8B8"
MAX_IMAGE_PX = 1500
_CIRCLE = np.column_stack([f(np.linspace(0, 2 * np.pi, 24, endpoint=False)) for f in (np.cos, np.sin)]) / 2
_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2


def require_one_finding(results: pd.DataFrame) -> None:
    """Raise if scores are of several findings: their mean would pass for one of them."""
    names = list(results["finding"].unique()) if "finding" in results else []
    if len(names) > 1:
        msg = (
            f"`results` holds the scores of {len(names)} findings ({listing(names)}). Draw one at a time: "
            f"`results[results['finding'] == {names[0]!r}]`."
        )
        raise ValueError(msg)


def new_axes(ax: Any, n_rows: int, n_columns: int, panel: tuple[float, float]) -> np.ndarray:
    """Return axes ``(n_rows, n_columns)``: the given ones, or new ones of ``panel`` inches each."""
    if ax is None:
        import matplotlib.pyplot as plt

        size = (panel[0] * n_columns, panel[1] * n_rows)
        return plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="compressed")[1]
    given = np.asarray(ax, dtype=object)
    if given.size != n_rows * n_columns:
        msg = f"`ax` must hold {n_rows} x {n_columns} axes (sections x pictures), got {given.size}."
        raise ValueError(msg)
    return given.reshape(n_rows, n_columns)


def class_names(column: pd.Series) -> np.ndarray:
    """Return the class of every row as text, ``None`` where it is missing."""
    pairs = zip(column, column.isna(), strict=True)
    return np.array([None if missing else label_name(value) or None for value, missing in pairs], dtype=object)


def is_continuous(table: AnnData, key: str) -> bool:
    """Tell whether a column of ``obs`` is drawn on a colour scale; numbers that serve as labels are not."""
    column = table.obs[key]
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return numeric and not key.endswith(_keys.PREDICTED) and key + _keys.PREDICTED not in table.obs


def class_colors(table: AnnData, key: str, palette: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return one colour a class of ``obs[key]``, the same for labels and their predictions.

    A ``palette`` comes first, then ``uns[f"{key}_colors"]`` of the labels, else the package's palette in the
    order of the labels' categories. Classes are those of the whole table, so a section has the same colours
    alone and beside others.
    """
    labels_key = key.removesuffix(_keys.PREDICTED)
    columns = [name for name in (labels_key, key, labels_key + _keys.PREDICTED) if name in table.obs]
    colors: dict[str, Any] = {}
    for name in dict.fromkeys(columns):
        stored = table.uns.get(f"{name}_colors")
        categories = _categories(table.obs[name])
        if stored is not None and not colors:
            if len(stored) >= len(categories):
                colors = dict(zip(categories, stored, strict=False))
            else:
                warn(
                    f"`adata.uns['{name}_colors']` has {len(stored)} colours for {len(categories)} classes; "
                    "it is left aside."
                )
    names = dict.fromkeys(c for name in columns for c in _categories(table.obs[name]))
    free = iter(distinct_colors(len(names), taken=colors.values()))
    colors = {name: colors[name] if name in colors else next(free) for name in names}
    if palette is not None:
        unknown = [name for name in colors if name not in palette]
        if unknown:
            msg = f"`palette` has no colour for {listing(unknown)}; it names {listing(palette)}."
            raise KeyError(msg)
        colors = {name: palette[name] for name in colors}
    return colors


def _categories(column: pd.Series) -> list[str]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return [label_name(name) for name in column.cat.categories]
    return sorted({name for name in class_names(column) if name is not None})


def distinct_colors(n: int, taken: Collection[Any] = ()) -> list[Any]:
    """Return colours for ``n`` classes, of which some are ``taken``: the palette's, or more when it is too short."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    used = {to_hex(color) for color in taken}
    free = [color for color in PALETTE if to_hex(color) not in used]
    if len(free) >= n - len(used):
        return free
    return [to_hex(color) for color in colormaps["turbo"](np.linspace(0.02, 0.98, n))]


def coordinates(table: AnnData, rows: np.ndarray) -> np.ndarray:
    """Return full-resolution pixel coordinates ``(n, 2)`` of the given rows."""
    require_key(table.obsm, _keys.SPATIAL, where="adata.obsm", argument="spatial")
    xy = np.asarray(table.obsm[_keys.SPATIAL], dtype=float)[rows, :2]
    if not np.isfinite(xy).all():
        bad = int((~np.isfinite(xy)).any(axis=1).sum())
        msg = f"`adata.obsm['spatial']` is NaN or infinite for {bad} of {len(xy)} rows. Leave them out."
        raise ValueError(msg)
    return xy


def spot_size(table: AnnData, library_id: str, xy: np.ndarray, size: float | None) -> float:
    """Return the spot diameter in full-resolution pixels: given, recorded, or 0.6 of the spots' distance."""
    if size is not None:
        require_number(size, argument="size", above=0)
        return float(size)
    recorded = section_entry(table, library_id, "scalefactors").get("spot_diameter_fullres")
    if recorded is not None and np.isfinite(recorded) and recorded > 0:
        return float(recorded)
    return 0.6 * nearest_distance(xy) or 1.0 if len(xy) > 1 else 1.0


def pixel_size(table: AnnData, library_id: str, rows: np.ndarray) -> float | None:
    """Return the um of a full-resolution pixel, None where it is not known."""
    try:
        return um_per_pixel(table, library_id, rows).um_per_px
    except ValueError:
        return None


def draw_spots(
    ax: Axes, xy: np.ndarray, diameter: float, colors: Any, *, square: bool = False, **kwargs: Any
) -> PolyCollection:
    """Add spots with a diameter in the units of the data (points would change with the figure)."""
    from matplotlib.collections import PolyCollection

    outline = _SQUARE if square else _CIRCLE
    kwargs = {"edgecolors": "none", "linewidths": 0, "rasterized": len(xy) > 3000} | kwargs
    spots = PolyCollection(xy[:, None, :] + diameter * outline, facecolors=colors, **kwargs)
    ax.add_collection(spots)
    return spots


@dataclass(frozen=True)
class Thumbnail:
    """A reduced part of a section's image and where it lies, in full-resolution pixels."""

    pixels: np.ndarray
    extent: tuple[float, float, float, float]  # left, top, right, bottom

    def draw(self, ax: Axes) -> None:
        left, top, right, bottom = self.extent
        ax.imshow(self.pixels, extent=(left, right, bottom, top), interpolation="antialiased", zorder=0)


def thumbnail(
    data: AnnData | SpatialData,
    library_id: str,
    *,
    box: Sequence[float] | None,
    image: bool | str,
    table_key: str,
) -> Thumbnail | None:
    """Return the part of the section's image inside ``box``, reduced; None where there is no image.

    ``box`` is ``(left, top, right, bottom)`` in full-resolution pixels, None for the whole image.
    """
    shown = None if image is False else _small_image(data, library_id, image, table_key)
    if shown is None:
        return None
    height, width = shown.array.shape[:2]
    corners = np.array([[0, 0], [width, height]]) if box is None else shown.to_pixels(np.reshape(box, (2, 2)))
    low = np.clip(np.floor(corners[0]), 0, [width, height]).astype(int)
    high = np.clip(np.ceil(corners[1]), 0, [width, height]).astype(int)
    if (high <= low).any():  # no spot lies on the image
        return None
    pixels = _reduced(shown.array[low[1] : high[1], low[0] : high[0]], MAX_IMAGE_PX)
    (left, top), (right, bottom) = (np.array([low, high]) - shown.offset) / shown.scale
    return Thumbnail(pixels, (left, top, right, bottom))


def _small_image(
    data: AnnData | SpatialData, library_id: str, image: bool | str, table_key: str
) -> SectionImage | None:
    """Return the named image, or with ``True`` the one that is quick to read: the reduced hires one."""
    if image is not True:
        return section_image(data, library_id, image=image, table_key=table_key)
    if not has_image(data, library_id, table_key=table_key):
        return None
    for name in ("hires", None, "lowres"):  # None: the finest
        try:
            return section_image(data, library_id, image=name, table_key=table_key)
        except KeyError:
            continue
        except FileNotFoundError as error:  # a table that was moved away from its image file
            warn(f"Section {library_id!r} is drawn without its full-resolution image. {error}")
    return None


def _reduced(pixels: Any, largest: int) -> np.ndarray:
    """Return pixels reduced by a whole factor to at most ``largest`` a side; lazily where they are lazy."""
    step = int(np.ceil(max(pixels.shape[:2]) / largest))
    stride = max(1, step // 3)  # averaging 3 x 3 samples a pixel is enough against aliasing
    pixels = np.asarray(pixels[::stride, ::stride])
    block = int(np.ceil(max(pixels.shape[:2]) / largest))
    if block == 1:
        return pixels
    height, width = (side // block * block for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // block, block, width // block, block, -1)
    return blocks.mean(axis=(1, 3), dtype=np.float32).round().astype(np.uint8)


def frame(ax: Axes, box: Sequence[float]) -> None:
    """Show exactly ``box`` = (left, top, right, bottom), y downwards as in the image, without ticks."""
    ax.set(xlim=(box[0], box[2]), ylim=(box[3], box[1]), xticks=[], yticks=[], aspect="equal")
    for side in ax.spines.values():
        side.set_visible(False)


def scale_bar(ax: Axes, microns_per_unit: float | None) -> None:
    """Add a bar of a round length in the lower left corner; nothing when the scale is not known."""
    if microns_per_unit is None:
        return
    from matplotlib.patheffects import withStroke

    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    wanted = 0.25 * (right - left) * microns_per_unit
    power = 10 ** np.floor(np.log10(wanted))
    length = max(m for m in (1, 2, 5) if m * power <= wanted * (1 + 1e-9)) * power
    x, y = left + 0.03 * (right - left), bottom + 0.035 * (top - bottom)
    bar = ax.plot([x, x + length / microns_per_unit], [y, y], color="black", lw=2.5, solid_capstyle="butt",
                  scalex=False, scaley=False)[0]  # fmt: skip
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    label = ax.text(x, y + 0.012 * (top - bottom), text, color="black", fontsize=8, va="bottom")
    for artist, width in ((bar, 4.5), (label, 2.5)):
        artist.set_path_effects([withStroke(linewidth=width, foreground="white", alpha=0.85)])


def class_legend(ax: Axes, entries: Mapping[str, Mapping[str, Any]], *, outside: bool = False) -> None:
    """Add a legend of round marks right of the axes, or with ``outside`` right of all axes of the figure."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="none", marker="o", ms=7, label=name, **style) for name, style in entries.items()]
    style = {"frameon": False, "fontsize": 9, "handletextpad": 0.2, "labelspacing": 0.4}
    if outside:
        ax.figure.legend(handles=handles, loc="outside right center", **style)
    else:
        ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.3, **style)
