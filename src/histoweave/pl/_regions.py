"""Spots over the H&E: labels, prediction and confidence side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._calibration import section_entry
from histoweave._resolve import get_table, sections
from histoweave._validate import require_key, require_number
from histoweave.pl import _draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


_NO_LABEL, _ABSTAINED = "no label", "abstained"


def regions(
    data: AnnData | SpatialData,
    *,
    color: str | Sequence[str] | None = None,
    labels_key: str = _keys.REGION,
    library_id: str | Sequence[str] | None = None,
    image: bool | str = True,
    size: float | None = None,
    alpha: float = 0.9,
    crop: bool = True,
    palette: Mapping[str, Any] | None = None,
    legend: bool = True,
    scale_bar: bool = True,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    ax: Axes | Sequence[Axes] | None = None,
) -> Axes | np.ndarray:
    """Draw spots over the histology, one picture a column of ``obs`` and one row a section.

    By default the labels, the prediction and its confidence stand side by side, as far as the table has
    them. Every class has one colour in all pictures and sections. Unlabelled spots are grey; spots on which
    the classifier abstained (``obs[f"{labels_key}_abstain"]``) are rings instead of discs.

    Parameters
    ----------
    data
        Table or SpatialData with ``obsm["spatial"]``. Without an image the spots are drawn alone, y down.
    color
        Columns of ``obs``. Numbers get a colour bar (0 to 1 for a confidence), all else one colour a class.
    labels_key
        Column of the labels; names the default ``color``: ``labels_key``, ``labels_key + "_predicted"`` and
        ``labels_key + "_confidence"``, those that exist.
    library_id
        Section or sections to draw; all by default.
    image
        ``True``: the section's picture, when there is one; a name such as ``"full"`` or ``"lowres"`` chooses;
        ``False``: none. At most about 1,500 x 1,500 pixels are loaded.
    size
        Spot diameter in full-resolution pixels; by default the recorded one
        (``scalefactors["spot_diameter_fullres"]``), else 0.6 of the distance between spots.
    alpha
        Opacity of the spots.
    crop
        Show the part of the image around the spots only.
    palette
        ``{class name: colour}``; by default ``uns[f"{labels_key}_colors"]`` as Scanpy writes it, else a
        colour-blind-safe palette.
    legend, scale_bar
        Draw them. The scale bar needs a known pixel size (recorded, or from the pitch of the array).
    library_key
        Column of ``obs`` with the section names.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into, as many as sections times columns; by default a new figure.

    Returns
    -------
    The Axes, or an array of Axes ``(n_sections, n_columns)`` when there are several.

    Raises
    ------
    KeyError
        Unknown column, section, image, or class without a colour in ``palette``.
    ValueError
        Coordinates that are not finite, a wrong number of axes, or an image without a usable scale.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> ax = hw.pl.regions(adata, color="region")
    """
    require_number(alpha, argument="alpha", above=0, at_most=1)
    table = get_table(data, table_key)
    columns = _columns(table, color, labels_key)
    rows = _chosen(sections(table, library_key), library_id)
    pictures = {key: _picture(table, key, palette) for key in columns}
    places = {name: _Place.of(table, name, members, size) for name, members in rows.items()}
    images = {
        name: _draw.thumbnail(data, name, box=p.box if crop else None, image=image, table_key=table_key)
        for name, p in places.items()
    }
    axes = _draw.new_axes(ax, len(rows), len(columns), panel=_panel(places.values()))
    for place, line in zip(places.values(), axes, strict=True):
        below = images[place.name]
        for panel, key in zip(line, columns, strict=True):
            if below is not None:
                below.draw(panel)
            pictures[key].draw(panel, place, alpha)
            _draw.frame(panel, place.box if crop or below is None else below.extent)
        if scale_bar:
            _draw.scale_bar(line[0], _draw.pixel_size(table, place.name, place.rows))
        if len(rows) > 1:
            line[0].set_ylabel(place.name)
    for panel, key in zip(axes[0], columns, strict=True):
        panel.set_title(_title(key, labels_key), fontsize=11)
    if legend:
        _legend(axes, pictures, np.concatenate(list(rows.values())), own=ax is None)
    return axes[0, 0] if axes.size == 1 else axes


def _columns(table: AnnData, color: str | Sequence[str] | None, labels_key: str) -> list[str]:
    if color is None:
        wanted = (labels_key, labels_key + _keys.PREDICTED, labels_key + _keys.CONFIDENCE)
        found = [key for key in wanted if key in table.obs]
        if not found:
            require_key(table.obs, labels_key, where="adata.obs", argument="labels_key", run="hw.io.read_labels(...)")
        return found
    columns = [color] if isinstance(color, str) else list(dict.fromkeys(color))
    for key in columns:
        require_key(table.obs, key, where="adata.obs", argument="color")
    return columns


def _chosen(rows: dict[str, np.ndarray], library_id: str | Sequence[str] | None) -> dict[str, np.ndarray]:
    if library_id is None:
        return rows
    names = [library_id] if isinstance(library_id, str) else list(library_id)
    for name in names:
        require_key(rows, name, where="the sections of the table", argument="library_id")
    return {name: rows[name] for name in names}


def _title(key: str, labels_key: str) -> str:
    if key != labels_key and key.startswith(f"{labels_key}_"):
        return f"{labels_key}, {key.removeprefix(f'{labels_key}_')}"
    return key


@dataclass(frozen=True)
class _Place:
    """Where the spots of one section lie, in full-resolution pixels."""

    name: str
    rows: np.ndarray
    xy: np.ndarray
    diameter: float
    square: bool

    @classmethod
    def of(cls, table: AnnData, name: str, rows: np.ndarray, size: float | None) -> _Place:
        xy = _draw.coordinates(table, rows)
        square = section_entry(table, name, "metadata").get("platform") == "visium_hd"
        return cls(name, rows, xy, _draw.spot_size(table, name, xy, size), square)

    @property
    def box(self) -> tuple[float, float, float, float]:
        margin = 1.5 * self.diameter
        return (*(self.xy.min(axis=0) - margin), *(self.xy.max(axis=0) + margin))


def _panel(places: Iterable[_Place]) -> tuple[float, float]:
    """Inches of one picture: as high as the sections need, or the figure would be mostly white."""
    ratio = np.mean([(p.box[3] - p.box[1]) / (p.box[2] - p.box[0]) for p in places])
    return 4.4, 4.0 * float(np.clip(ratio, 0.3, 2)) + 0.35


def _picture(table: AnnData, key: str, palette: Mapping[str, Any] | None) -> _Classes | _Numbers:
    if _draw.is_continuous(table, key):
        return _Numbers.of(key, table.obs[key].to_numpy(dtype=float))
    names = _draw.class_names(table.obs[key])
    abstain = key.removesuffix(_keys.PREDICTED) + _keys.ABSTAIN
    ring = np.zeros(table.n_obs, dtype=bool)
    if key.endswith(_keys.PREDICTED) and abstain in table.obs:
        ring = table.obs[abstain].astype("boolean").fillna(False).to_numpy(dtype=bool) & pd.notna(names)
    return _Classes(key, names, _draw.class_colors(table, key, palette), ring)


@dataclass(frozen=True)
class _Classes:
    """A column of class names: one colour a class, rings where the classifier abstained."""

    key: str
    names: np.ndarray
    colors: dict[str, Any]
    ring: np.ndarray

    def draw(self, ax: Axes, place: _Place, alpha: float) -> None:
        from matplotlib.colors import to_rgba_array

        names, ring = self.names[place.rows], self.ring[place.rows]
        xy, diameter, square = place.xy, place.diameter, place.square
        colors = to_rgba_array([self.colors.get(name, _draw.MISSING) for name in names], alpha)
        _draw.draw_spots(ax, xy[~ring], diameter, colors[~ring], square=square)
        if ring.any():  # smaller, because half of a line lies outside its outline
            _draw.draw_spots(ax, xy[ring], 0.8 * diameter, "none", square=square, edgecolors=colors[ring],
                             linewidths=1.2)  # fmt: skip

    def entries(self, rows: np.ndarray) -> dict[str, dict[str, Any]]:
        names = set(self.names[rows])
        marks = {name: {"color": color} for name, color in self.colors.items() if name in names}
        if None in names:
            marks[_NO_LABEL] = {"color": _draw.MISSING}
        if self.ring[rows].any():
            marks[_ABSTAINED] = {"markerfacecolor": "none", "markeredgecolor": "#444444"}
        return marks


@dataclass(frozen=True)
class _Numbers:
    """A column of numbers on a colour scale; missing ones are grey."""

    values: np.ndarray
    limits: tuple[float, float]

    @classmethod
    def of(cls, key: str, values: np.ndarray) -> _Numbers:
        finite = values[np.isfinite(values)]
        if not finite.size:
            msg = f"`adata.obs[{key!r}]` holds no finite number to draw."
            raise ValueError(msg)
        return cls(values, (0, 1) if key.endswith(_keys.CONFIDENCE) else (finite.min(), finite.max()))

    def draw(self, ax: Axes, place: _Place, alpha: float) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        colormap = colormaps["viridis"].with_extremes(bad=_draw.MISSING)
        scale = ScalarMappable(Normalize(*self.limits), colormap)
        values = np.ma.masked_invalid(self.values[place.rows])
        colors = scale.to_rgba(values, alpha=alpha)
        _draw.draw_spots(ax, place.xy, place.diameter, colors, square=place.square)
        ax.figure.colorbar(scale, ax=ax, fraction=0.045, pad=0.02).outline.set_visible(False)


def _legend(axes: np.ndarray, pictures: Mapping[str, _Classes | _Numbers], rows: np.ndarray, own: bool) -> None:
    """One legend for labels with their predictions: right of our own figure, else of their last axes."""
    families: dict[str, dict[str, Any]] = {}
    places: dict[str, Axes] = {}
    for ax, picture in zip(axes[0], pictures.values(), strict=True):
        if isinstance(picture, _Classes):
            family = picture.key.removesuffix(_keys.PREDICTED)
            entries = families.get(family, {}) | picture.entries(rows)
            order = [*picture.colors, _NO_LABEL, _ABSTAINED]
            families[family] = {name: entries[name] for name in order if name in entries}
            places[family] = ax
    for family, entries in families.items():
        _draw.class_legend(places[family], entries, outside=own and len(families) == 1)
