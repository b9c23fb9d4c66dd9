"""Whether the spots of a section lie where its image shows tissue, and what would put them there."""

from __future__ import annotations

import numpy as np

from histoweave._calibration import Calibration, array_steps, platform
from histoweave._resolve import SectionImage
from histoweave.pp._alignment_checks import MANY, Finding, Section, full_size, tissue_map
from histoweave.pp._placement import ORIENTATIONS, Fit, TissueMap, best_orientation, mirrors, sample
from histoweave.pp._tissue import THUMBNAIL_PX

MARGIN = 0.15  #: by how much another placement has to match better
FEW_ON_TISSUE, TOO_FEW_ON_TISSUE = 0.75, 0.4
BY_EXTENT = "coordinates at another scale"


def check_placement(
    section: Section, pictures: dict[str, SectionImage], calibration: Calibration | None
) -> list[Finding]:
    """Spots on the image, on tissue, the right way round and at the right scale."""
    large = [p for p in pictures.values() if max(p.array.shape[:2]) >= THUMBNAIL_PX // 2]
    picture = (large or list(pictures.values()))[-1]  # the smallest that shows where tissue is
    shift = np.divide(picture.offset, picture.scale)
    size = tuple(full_size(next(iter(pictures.values()))))  # the finest image is the least rounded
    tissue = tissue_map(picture)
    xy = sample(section.in_tissue + shift)
    now = tissue.fit(xy) if tissue else Fit(0.0, 0.0)
    turned = _orientation(section, tissue, xy, size, now)
    scaled = _scale(section, tissue, xy, now, picture, calibration)
    if turned.status == "fail" and scaled.status == "fail":  # one cause is enough: the one that explains more
        better = _fit_of(turned) < _fit_of(scaled)
        turned, scaled = (_passed(turned), scaled) if better else (turned, _passed(scaled))
    cause = next((f for f in (turned, scaled) if f.status == "fail"), None)
    fix = cause.fix if cause else ""
    on_image = _on_image(section, section.xy + shift, section.in_tissue + shift, size, fix)
    return [on_image, _on_tissue(section, tissue, now, fix), turned, scaled]


def _fit_of(finding: Finding) -> float:
    return finding.value if np.isfinite(finding.value) else 0.0


def _passed(finding: Finding) -> Finding:
    return finding._replace(status="ok", message="Explained by another finding.", fix="")


def _on_image(section: Section, xy: np.ndarray, in_tissue: np.ndarray, size: tuple[float, float], fix: str) -> Finding:
    outside, lost = (((p < 0) | (p >= size)).any(axis=1) for p in (xy, in_tissue))
    share = 1 - outside.mean()
    if not outside.any():
        return section.finding("on_image", "ok", share, "1", "Every spot lies on the image.")
    message = (
        f"{outside.sum()} of {len(xy)} spots, {lost.sum()} of those in tissue, lie off the image of "
        f"{size[0]:.0f} x {size[1]:.0f} pixels."
    )
    status = "fail" if lost.mean() > MANY else "warn"
    return section.finding("on_image", status, share, "1", message, fix)


def _on_tissue(section: Section, tissue: TissueMap | None, now: Fit, fix: str) -> Finding:
    expected = f"{FEW_ON_TISSUE:g} or more"
    if tissue is None:
        message = "Tissue cannot be told from slide: the image has one colour. Is it the right image?"
        return section.finding("on_tissue", "warn", np.nan, expected, message)
    message = f"{now.on_tissue:.0%} of the spots lie on tissue; spots cover {now.covered:.0%} of the tissue."
    low = now.on_tissue < FEW_ON_TISSUE
    status = "fail" if now.on_tissue < TOO_FEW_ON_TISSUE else "warn" if low else "ok"
    look = fix or f"hw.pl.alignment(data, library_id={section.name!r})  # look where they lie"
    return section.finding("on_tissue", status, now.on_tissue, expected, message, look if low else "")


def _orientation(
    section: Section, tissue: TissueMap | None, xy: np.ndarray, size: tuple[float, float], now: Fit
) -> Finding:
    steps = _array_axes(section)
    mirrored = steps is not None and np.linalg.det(steps) < 0
    allowed = [o for o in ORIENTATIONS if steps is None or mirrors(o) == mirrored]
    best, fit = best_orientation(tissue, xy, size, allowed, steps)
    expected = "the best of eight ways"
    if not mirrored and fit.score < now.score + MARGIN:
        return section.finding("orientation", "ok", now.score, expected, "No other way matches better.")
    swap, flip_x, flip_y = best
    changes, words = [], []
    if swap:
        changes.append("xy[i] = xy[i][:, ::-1]")
        words.append("x and y are swapped")
    for axis, flip in enumerate((flip_x, flip_y)):
        if flip:
            changes.append(f"xy[i, {axis}] = {size[axis]:.10g} - xy[i, {axis}]")
            words.append(f"{'xy'[axis]} runs the other way")
    message = f"Likely {' and '.join(words)}: "
    if mirrored:
        message += "the array is mirrored (its rows do not run downwards where its columns run to the right)"
    if fit.score >= now.score + MARGIN:
        message += "; " if mirrored else ""
        message += f"spots match the tissue at {fit.score:.2f} then, {now.score:.2f} now"
    return section.finding("orientation", "fail", fit.score, expected, message + ".", section.code(*changes))


def _array_axes(section: Section) -> np.ndarray | None:
    """Return the pixel vectors of a column and a row of the array, None where its direction is not fixed."""
    if platform(section.table, section.name, section.rows) == "visium_hd":  # written in either direction
        return None
    steps = array_steps(section.table, section.name, section.rows, spatial_key=section.spatial_key)
    if {(0, 1), (1, 0)} <= set(steps):
        return np.stack([steps[0, 1], steps[1, 0]])
    if {(0, 2), (1, 1), (1, -1)} <= set(steps):
        return np.stack([steps[0, 2], steps[1, 1] + steps[1, -1]])
    return None


def _scale(
    section: Section,
    tissue: TissueMap | None,
    xy: np.ndarray,
    now: Fit,
    picture: SectionImage,
    calibration: Calibration | None,
) -> Finding:
    if tissue is None:
        return section.finding("scale", "ok", np.nan, "1", "Cannot be checked without tissue.")
    checks = calibration.checks if calibration else {}
    coordinates_hold = False
    factors = _known_factors(section)
    if {"microns_per_pixel", "array_pitch"} <= set(checks):
        ratio = checks["array_pitch"] / checks["microns_per_pixel"]
        coordinates_hold = abs(ratio - 1) <= MANY
        if not coordinates_hold:
            factors["coordinates are not full-resolution pixels, by the array's pitch"] = ratio
    if coordinates_hold:  # then only the image can be at fault
        factors = {}
    reach = np.percentile(xy, 98, axis=0)
    if (reach > 0).all() and not (coordinates_hold and picture.scale[0] == 1):
        factors[BY_EXTENT] = float(np.exp(np.log(tissue.extent() / reach).mean()))
    fits = {cause: tissue.fit(xy * factor) for cause, factor in factors.items()}
    likely = [c for c, fit in fits.items() if _explains(fit, now, measured=c != BY_EXTENT)]
    if not likely:
        return section.finding("scale", "ok", now.score, "1", "No other scale matches better.")
    # a measured factor is exact, one from the tissue's extent a guess
    cause = max(likely, key=lambda c: (c != BY_EXTENT, fits[c].score))
    factor, match = (
        factors[cause],
        f"spots match the tissue at {fits[cause].score:.2f} then, {now.score:.2f} now.",
    )
    if coordinates_hold or (cause == BY_EXTENT and picture.scale[0] != 1):
        label = picture.name.removeprefix(f"{section.name}_").removesuffix("_image")
        message = f"The scale factor of image {label!r} is likely wrong by a factor of {factor:.4g}; {match}"
        fix = section.factor_code(label, picture.scale[0] * factor)
    else:
        message = f"Likely {cause}: they need a factor of {factor:.4g}; {match}"
        fix = section.code(f"xy[i] *= {factor:.8g}")
    return section.finding("scale", "fail", fits[cause].score, "1", message, fix)


def _explains(fit: Fit, now: Fit, *, measured: bool) -> bool:
    """Tell whether a fit is better beyond doubt; part of the spots can always be stretched over more."""
    if fit.score < now.score + MARGIN or fit.on_tissue < now.on_tissue - 0.1:
        return False
    return measured or now.on_tissue < FEW_ON_TISSUE or (now.score < 0.5 and fit.score >= 0.8)


def _known_factors(section: Section) -> dict[str, float]:
    """Factors of the usual mistakes: coordinates in pixels of a small image or in micrometres."""
    factors = section.table.uns.get("spatial", {}).get(section.name, {}).get("scalefactors", {})
    found = {}
    for name in ("hires", "lowres"):
        factor = factors.get(f"tissue_{name}_scalef")
        if factor and np.isfinite(factor) and 0 < factor < 1:
            found[f"coordinates are pixels of the {name} image"] = 1 / factor
    microns = factors.get("microns_per_pixel")
    if microns and np.isfinite(microns) and microns > 0 and abs(microns - 1) > MANY:
        found["coordinates are micrometres"] = 1 / microns
    return found
