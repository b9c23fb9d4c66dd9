"""Many small pictures in one: crops side by side on white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave.pl import _draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_mosaic(
    lines: Sequence[Sequence[np.ndarray]], *, n_columns: int | None = None, group: int = 1, ax: Axes | None = None
) -> Axes:
    """Draw lines of equally large pictures ``(height, width, 3)`` uint8; one unit is one of their pixels.

    Parameters
    ----------
    lines
        Pictures, line by line; short lines stay white at their end.
    n_columns
        Pictures a line, by default those of the longest.
    group
        So many neighbours stand without a gap.
    ax
        Axes to draw into; by default a new figure.
    """
    height, width = lines[0][0].shape[:2]
    n_columns = n_columns or max(map(len, lines))
    gap = _gap(width)
    shape = (len(lines) * (height + gap) - gap, int(left_edge(n_columns - 1, width, group)) + width, 3)
    mosaic = np.full(shape, 255, dtype=np.uint8)
    for number, line in enumerate(lines):
        top = number * (height + gap)
        for place, picture in enumerate(line):
            left = left_edge(place, width, group)
            mosaic[top : top + height, left : left + width] = picture
    ax = _draw.new_axes(ax, 1, 1, panel=(1.2 + 0.85 * n_columns, 0.3 + 0.85 * len(lines) * height / width))[0, 0]
    ax.imshow(mosaic, extent=(0, shape[1], shape[0], 0))
    _draw.frame(ax, (0, 0, shape[1], shape[0]))
    return ax


def left_edge(place: int, width: int, group: int = 1) -> int:
    """Return where the picture at a place of a line begins."""
    return place * width + place // group * _gap(width)


def _gap(width: int) -> int:
    return max(1, width // 16)


def name_lines(ax: Axes, names: Sequence[str], colors: Mapping[str, Any], shape: tuple[int, int]) -> None:
    """Write the names of the lines of pictures of this shape, in their colours, to the left."""
    height, width = shape
    ax.set_yticks([line * (height + _gap(width)) + height / 2 for line in range(len(names))], names)
    ax.tick_params(length=0)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set(color=colors.get(name, "black"), fontweight="bold")


def size_bar(ax: Axes, size_um: Mapping[str, float], width: int) -> None:
    """Draw the width of a crop below the first column: on a crop the bar would hide what it measures."""
    sizes = {round(float(size), 1) for size in size_um.values()}
    if len(sizes) != 1 or not np.isfinite(min(sizes)):  # not known, or not the same in all sections
        return
    bottom = ax.get_ylim()[0]
    y = [bottom + 0.1 * width] * 2
    ax.plot([0, width], y, color="black", lw=2, solid_capstyle="butt", clip_on=False, scalex=False, scaley=False)
    ax.text(width / 2, y[0] + 0.08 * width, f"{min(sizes):g} µm", ha="center", va="top", fontsize=8)
