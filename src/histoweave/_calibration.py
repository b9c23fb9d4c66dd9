"""How large a full-resolution pixel is, from every source a section offers, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._validate import require_number

#: Space Ranger's ``spot_diameter_fullres`` spans a theoretical 65 um spot; the printed one is 55 um wide.
THEORETICAL_SPOT_UM = 65.0
PRINTED_SPOT_UM = {"visium": 55.0, "st": 100.0}
PITCH_UM = {"visium": 100.0, "st": 200.0}
TOLERANCE = 0.05
#: Sides of the crops cut by default, in array pitches: the spot itself, with its margin, and its surroundings.
CROP_PITCHES = {_keys.CROPS_DETAIL: 0.55, _keys.CROPS: 1.1, _keys.CROPS_CONTEXT: 3.0}
#: Steps (rows, columns) to the neighbours of a spot, half of them: the other half is their opposite.
STEPS = {"hex": ((0, 2), (1, 1), (1, -1)), "square": ((0, 1), (1, 0))}


@dataclass(frozen=True)
class Calibration:
    """The size of a full-resolution pixel of one section.

    Attributes
    ----------
    um_per_px
        Micrometres per full-resolution pixel.
    source
        ``"argument"``, ``"microns_per_pixel"``, ``"array_pitch"`` or ``"spot_diameter"``.
    checks
        The value by each source that is there, the chosen one first.
    """

    um_per_px: float
    source: str
    checks: dict[str, float]

    def disagreements(self, tolerance: float = TOLERANCE) -> dict[str, float]:
        """Return the sources that differ from the chosen one by more than ``tolerance``, as ratios to it."""
        ratios = {name: value / self.um_per_px for name, value in self.checks.items()}
        return {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > tolerance}


def um_per_pixel(
    table: AnnData,
    library_id: str,
    rows: np.ndarray,
    *,
    um_per_px: float | Mapping[str, float] | None = None,
    spatial_key: str = _keys.SPATIAL,
) -> Calibration:
    """Return how many micrometres a full-resolution pixel of a section is wide.

    The first of: ``um_per_px``; ``scalefactors["microns_per_pixel"]``; the known centre-to-centre distance of
    the array (100 um for Visium, 200 um for legacy ST, or ``metadata["array_pitch_um"]``) over the distance
    measured in pixels; 65 um over ``scalefactors["spot_diameter_fullres"]`` (Visium only).

    Parameters
    ----------
    table
        The table with ``uns["spatial"]``, ``obsm[spatial_key]`` and, for the array, ``obs["array_row"]`` and
        ``obs["array_col"]``.
    library_id
        The section.
    rows
        Its row numbers in ``table``.
    um_per_px
        The answer where the user knows it: one number, or one for each section.

    Raises
    ------
    ValueError
        Nothing is known, or what is stored is not positive.
    """
    if isinstance(um_per_px, Mapping):
        um_per_px = um_per_px.get(library_id)
    if um_per_px is not None:
        require_number(um_per_px, argument="um_per_px", above=0)
    found = {} if um_per_px is None else {"argument": float(um_per_px)}
    found |= _from_scale_factors(table, library_id, "microns_per_pixel", lambda value: value, found)
    pitch_um = array_pitch_um(table, library_id, rows)
    steps = array_steps(table, library_id, rows, spatial_key=spatial_key)
    if pitch_um and steps:
        found["array_pitch"] = pitch_um / pitch_in_pixels(steps)
    if platform(table, library_id, rows) == "visium":
        found |= _from_scale_factors(
            table, library_id, "spot_diameter_fullres", lambda value: THEORETICAL_SPOT_UM / value, found
        )
    if not found:
        msg = (
            f"The size of a pixel of section {library_id!r} is not known: its scale factors hold no "
            "`microns_per_pixel`, and there is no array of a known pitch. Pass `um_per_px=`, the micrometres per "
            "full-resolution pixel (the microscope's or scanner's file states it), or sizes in pixels."
        )
        raise ValueError(msg)
    source = next(iter(found))
    return Calibration(found[source], source.replace("spot_diameter_fullres", "spot_diameter"), found)


def _from_scale_factors(
    table: AnnData, library_id: str, key: str, convert: Any, found: dict[str, float]
) -> dict[str, float]:
    value = section_entry(table, library_id, "scalefactors").get(key)
    if value is None:
        return {}
    if np.isfinite(value) and value > 0:
        return {key: float(convert(value))}
    if found:  # a better source is there, so the defect does no harm
        return {}
    msg = (
        f"Section {library_id!r}: `uns['spatial'][{library_id!r}]['scalefactors'][{key!r}]` is {value}; it must be "
        "positive. Correct it, or pass `um_per_px=`."
    )
    raise ValueError(msg)


def section_entry(table: AnnData, library_id: str, part: str) -> Mapping[str, Any]:
    """Return ``uns["spatial"][library_id][part]``, empty when there is none."""
    return table.uns.get("spatial", {}).get(library_id, {}).get(part, {})


def array_positions(table: AnnData, rows: np.ndarray) -> np.ndarray | None:
    """Return the integer array positions ``(n, 2)`` of a section as (row, column), or None without them."""
    if not {_keys.ARRAY_ROW, _keys.ARRAY_COL} <= set(table.obs.columns):
        return None
    positions = table.obs[[_keys.ARRAY_ROW, _keys.ARRAY_COL]].to_numpy(dtype=float)[rows]
    return np.rint(positions).astype(np.int64) if np.isfinite(positions).all() else None


def array_grid(table: AnnData, library_id: str, rows: np.ndarray) -> str | None:
    """Return ``"hex"`` or ``"square"``: as stored, else by the parity that only a hexagonal array keeps."""
    stored = section_entry(table, library_id, "metadata").get("array_grid")
    if stored in STEPS:
        return str(stored)
    positions = array_positions(table, rows)
    if positions is None:
        return None
    return "hex" if len(np.unique(positions.sum(axis=1) % 2)) == 1 else "square"


def platform(table: AnnData, library_id: str, rows: np.ndarray) -> str | None:
    """Return the platform of a section; Visium where none is stored and the array is hexagonal."""
    stored = section_entry(table, library_id, "metadata").get("platform")
    return str(stored) if stored else "visium" if array_grid(table, library_id, rows) == "hex" else None


def array_pitch_um(table: AnnData, library_id: str, rows: np.ndarray) -> float | None:
    """Return the centre-to-centre distance of neighbours on the array in um, None if not known."""
    stored = section_entry(table, library_id, "metadata").get("array_pitch_um")
    if stored is not None and np.isfinite(stored) and stored > 0:
        return float(stored)
    return PITCH_UM.get(platform(table, library_id, rows) or "")


def array_steps(
    table: AnnData, library_id: str, rows: np.ndarray, *, spatial_key: str = _keys.SPATIAL
) -> dict[tuple[int, int], np.ndarray]:
    """Measure the pixel vector (x, y) of each step to a neighbour on the array.

    Each is the least-squares step, the mean, over the pairs of spots that are true neighbours on the array;
    pairs that differ from the median by more than a fifth (a misplaced spot) are left out, and spots that are
    missing do not matter. Empty without array positions or without any pair.
    """
    positions = array_positions(table, rows)
    if positions is None or spatial_key not in table.obsm:
        return {}
    xy = np.asarray(table.obsm[spatial_key])[rows, :2].astype(float)
    place = {tuple(p): i for i, p in enumerate(positions.tolist())}
    steps = {}
    for step in STEPS[array_grid(table, library_id, rows) or "square"]:
        pairs = [(i, place.get((r + step[0], c + step[1]))) for (r, c), i in place.items()]
        pairs = [(i, j) for i, j in pairs if j is not None]
        if not pairs:
            continue
        here, there = np.transpose(pairs)
        vectors = xy[there] - xy[here]
        middle = np.median(vectors, axis=0)
        close = np.linalg.norm(vectors - middle, axis=1) <= 0.2 * np.linalg.norm(middle)
        steps[step] = vectors[close].mean(axis=0) if close.any() else middle
    return {step: v for step, v in steps.items() if np.linalg.norm(v) > 0}


def pitch_in_pixels(steps: dict[tuple[int, int], np.ndarray]) -> float:
    """Return the mean length of the steps of :func:`array_steps`."""
    return float(np.mean([np.linalg.norm(v) for v in steps.values()]))


def nearest_distance(xy: np.ndarray) -> float:
    """Return the median distance from a place to the nearest other one, NaN for fewer than two places."""
    from scipy.spatial import cKDTree

    xy = np.unique(xy, axis=0)  # rows at one place say nothing of how far places lie apart
    if len(xy) < 2:
        return float("nan")
    return float(np.median(cKDTree(xy).query(xy, k=2)[0][:, 1]))


def describe(calibration: Calibration) -> str:
    """Write the sources and their values for a message."""
    return ", ".join(f"{name}: {value:.4g} um/px" for name, value in calibration.checks.items())
