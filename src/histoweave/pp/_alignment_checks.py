"""The single checks of an alignment, each with its verdict and its fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData

from histoweave._calibration import Calibration, describe, um_per_pixel
from histoweave._obs import in_tissue
from histoweave._resolve import SectionImage, has_image, is_spatialdata, section_image
from histoweave.pp._placement import TissueMap, sample
from histoweave.pp._tissue import thumbnail, tissue_mask

MANY = 0.05
SIZE_TOLERANCE = 0.02


class Finding(NamedTuple):
    """One row of the result."""

    library_id: str
    check: str
    status: str
    value: float
    expected: str
    message: str
    fix: str


@dataclass(frozen=True)
class Section:
    """What the checks of one section need.

    ``home`` is how code writes the table; ``library_key`` is None where the section is the only one.
    """

    data: Any
    table: AnnData
    name: str
    rows: np.ndarray
    xy: np.ndarray
    table_key: str
    spatial_key: str
    home: str
    library_key: str | None

    def finding(self, check: str, status: str, value: float, expected: str, message: str, fix: str = "") -> Finding:
        """Return a row for this section."""
        return Finding(self.name, check, status, float(value), expected, message, fix)

    @property
    def in_tissue(self) -> np.ndarray:
        """Return the coordinates of the spots that should lie on tissue."""
        inside = in_tissue(self.table)[self.rows]
        return self.xy[inside] if inside.any() else self.xy

    def code(self, *changes: str) -> str:
        """Return code that changes the coordinates ``xy`` of this section's rows ``i``."""
        which = "slice(None)"
        if self.library_key:
            which = f"({self.home}.obs[{self.library_key!r}].astype(str) == {self.name!r}).to_numpy()"
        start = f"xy, i = {self.home}.obsm[{self.spatial_key!r}].astype(float), {which}"
        return "\n".join([start, *changes, f"{self.home}.obsm[{self.spatial_key!r}] = xy"])

    def factor_code(self, image: str, factor: float) -> str:
        """Return code that sets the scale factor of an image, its pixels per full-resolution pixel."""
        elements = [f"{self.name}_{image}_image", f"{self.name}_{image}", image] if is_spatialdata(self.data) else []
        for element in (e for e in elements if e in self.data.images):
            frame = self.name if self.name in self.data.coordinate_systems else "global"
            return (
                "from spatialdata.transformations import Scale, set_transformation\n"
                f"scale = Scale([{1 / factor:.8g}] * 2, axes=('x', 'y'))\n"
                f"set_transformation(data.images[{element!r}], scale, {frame!r})"
            )
        entry = f"{self.home}.uns['spatial'][{self.name!r}]['scalefactors']"
        return f"{entry}['tissue_{image}_scalef'] = {factor:.6g}"


def check_coordinates(section: Section) -> list[Finding]:
    """Missing values and spots at one place."""
    bad = ~np.isfinite(section.xy).all(axis=1)
    if bad.any():
        keep = f"np.isfinite({section.home}.obsm[{section.spatial_key!r}]).all(axis=1)"
        where = "data" if section.home == "data" else section.home
        return [
            section.finding(
                "coordinates",
                "fail",
                bad.sum(),
                "0 missing",
                f"{bad.sum()} spots have no coordinates.",
                f"{where} = {section.home}[{keep}].copy()",
            )
        ]
    twice = len(section.xy) - len(np.unique(section.xy, axis=0))
    if not twice:
        return [section.finding("coordinates", "ok", 0, "0 duplicates", "Every spot has its own place.")]
    message = f"{twice} spots lie at the place of another: rows were duplicated, or sections share one name."
    places = f"pd.DataFrame({section.home}.obsm[{section.spatial_key!r}])"
    if section.library_key:
        places += f".assign(s={section.home}.obs[{section.library_key!r}].to_numpy())"
    keep = f"~{places}.duplicated().to_numpy()"
    status = "fail" if twice > MANY * len(section.xy) else "warn"
    fix = f"import pandas as pd\n{section.home} = {section.home}[{keep}].copy()"
    return [section.finding("coordinates", status, twice, "0 duplicates", message, fix)]


def check_pixel_size(
    section: Section, um_per_px: float | Mapping[str, float] | None
) -> tuple[list[Finding], Calibration | None]:
    """Micrometres per pixel are known and their sources agree."""
    try:
        found = um_per_pixel(
            section.table, section.name, section.rows, um_per_px=um_per_px, spatial_key=section.spatial_key
        )
    except ValueError as error:
        fix = "hw.pp.crops(data, um_per_px=...)  # from the microscope's or scanner's file"
        return [section.finding("pixel_size", "warn", np.nan, "known", str(error), fix)], None
    disagreeing = found.disagreements()
    if not disagreeing:
        message = f"{describe(found)}; {found.source} is used."
        return [section.finding("pixel_size", "ok", found.um_per_px, "sources within 5 %", message)], found
    message = f"Sources disagree: {describe(found)}; {found.source} is used."
    if abs(disagreeing.get("spot_diameter_fullres", 1.0) - 65 / 55) < 0.03:
        message += " `spot_diameter_fullres` holds the printed 55 um, not the theoretical 65 um."
    # the nominal diameter of early Space Ranger is known to be off; array and microscope are not
    status = "warn" if set(disagreeing) <= {"spot_diameter_fullres"} else "fail"
    fix = f"{section.home}.uns['spatial'][{section.name!r}]['scalefactors']['microns_per_pixel'] = " + (
        f"{found.um_per_px:.5g}" if status == "warn" else "...  # the value of the microscope's or scanner's file"
    )
    if status == "warn" and "microns_per_pixel" not in found.checks:
        fix = f"hw.pp.crops(data, um_per_px={found.um_per_px:.5g})"
    worst = max(disagreeing.values(), key=lambda ratio: abs(np.log(ratio)))
    return [section.finding("pixel_size", status, worst, "sources within 5 %", message, fix)], found


def check_images(section: Section) -> tuple[list[Finding], dict[str, SectionImage]]:
    """There is an image, it can be read, and all images of the section give the same full size."""
    if not has_image(section.data, section.name, table_key=section.table_key):
        fix = "data = hw.io.read_visium(...)  # or hw.io.read_st(..., image=...)"
        return [section.finding("image", "warn", 0, "an image", "The section has no image.", fix)], {}
    pictures, findings = {}, []
    for name in (None, "hires", "lowres"):
        try:
            picture = section_image(section.data, section.name, image=name, table_key=section.table_key)
        except KeyError:
            continue
        except (ValueError, OSError, ImportError) as error:
            fix = section.factor_code("hires", 1.0).replace("= 1", "= ...") if "scalef" in str(error) else ""
            findings.append(section.finding("image", "fail", np.nan, "readable", str(error), fix))
            continue
        pictures.setdefault(picture.name, picture)
    if findings:
        return list(dict.fromkeys(findings))[:1], pictures
    return [_check_sizes(section, pictures)], pictures


def full_size(picture: SectionImage) -> np.ndarray:
    """Return the full-resolution size (width, height) that an image stands for."""
    return np.array(picture.array.shape[1::-1]) / picture.scale


def _check_sizes(section: Section, pictures: dict[str, SectionImage]) -> Finding:
    (finest, first), *others = pictures.items()
    size = full_size(first)
    for name, picture in others:
        ratio = full_size(picture) / size
        if np.abs(ratio - 1).max() <= SIZE_TOLERANCE:
            continue
        shorter, width = (name, size[0])
        if first.scale != (1.0, 1.0) and _score(section, picture) > _score(section, first):
            shorter, width = finest, full_size(picture)[0]
        image = pictures[shorter]
        label = shorter.removeprefix(f"{section.name}_").removesuffix("_image")
        message = (
            f"Images {finest!r} and {name!r} stand for full sizes that differ {ratio[0]:.3g}-fold: the scale factor of "
            f"{label!r} ({image.scale[0]:.4g}) is that of another image."
        )
        fix = section.factor_code(label, image.array.shape[1] / width)
        return section.finding("image", "fail", ratio[0], "1 within 2 %", message, fix)
    message = f"Images {', '.join(pictures)}: {size[0]:.0f} x {size[1]:.0f} full-resolution pixels."
    return section.finding("image", "ok", 1, "1 within 2 %", message)


def _score(section: Section, picture: SectionImage) -> float:
    tissue = tissue_map(picture)
    return tissue.fit(sample(section.in_tissue)).score if tissue else 0.0


def tissue_map(picture: SectionImage) -> TissueMap | None:
    """Return where an image shows tissue; specks below a tenth of the largest piece are left out."""
    from skimage.measure import label

    tissue = tissue_mask(thumbnail(picture))
    if tissue is None:
        return None
    pieces = label(tissue)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return TissueMap((sizes >= 0.1 * sizes.max())[pieces] & (pieces > 0), tuple(full_size(picture)))
