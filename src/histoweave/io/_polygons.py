"""Polygons drawn in QuPath, and the points they contain."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from histoweave._validate import listing, warn


def label_points(path: str | os.PathLike[str], xy: np.ndarray) -> np.ndarray:
    """Return the label of each point ``(n, 2)``, None outside all polygons.

    Reads the GeoJSON that QuPath exports (a FeatureCollection, or a bare list of features). A point on the
    edge belongs to the polygon; where polygons overlap the smallest wins, since a pathologist draws the
    detail inside the large.
    """
    import shapely

    polygons, names = _read(Path(path))
    tree = shapely.STRtree(polygons)
    point, polygon = tree.query(shapely.points(np.asarray(xy, dtype=float)), predicate="intersects")
    if not len(point):
        box = shapely.total_bounds(np.asarray(polygons, dtype=object))
        msg = (
            f"No polygon of {str(path)!r} contains a spot: polygons span x {box[0]:.0f} to {box[2]:.0f}, y "
            f"{box[1]:.0f} to {box[3]:.0f}; spots x {xy[:, 0].min():.0f} to {xy[:, 0].max():.0f}, y "
            f"{xy[:, 1].min():.0f} to {xy[:, 1].max():.0f}. Draw on the full-resolution image, or scale the "
            "polygons to its pixels."
        )
        raise ValueError(msg)
    names = np.asarray(names, dtype=object)
    area = shapely.area(np.asarray(polygons, dtype=object))
    large_first = np.argsort(-area[polygon], kind="stable")  # so that the smallest is written last
    labels = np.full(len(xy), None, dtype=object)
    disputed = np.zeros(len(xy), dtype=bool)
    for row, name in zip(point[large_first], names[polygon[large_first]], strict=True):
        disputed[row] |= labels[row] is not None and labels[row] != name
        labels[row] = name
    if disputed.any():
        warn(f"{int(disputed.sum())} spots lie in polygons of different labels; they got that of the smallest polygon.")
    return labels


def _read(path: Path) -> tuple[list[Any], list[str]]:
    from shapely.geometry import shape

    if not path.is_file():
        msg = f"`path`: there is no file {str(path)!r}."
        raise FileNotFoundError(msg)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        msg = (
            f"{str(path)!r} is not valid GeoJSON ({error}). Export it again from QuPath (File > Export "
            "objects as GeoJSON)."
        )
        raise ValueError(msg) from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    polygons, names, skipped = [], [], 0
    for feature in features if isinstance(features, list) else []:
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        name = _class_name(feature.get("properties") or {}) if geometry else None
        if name is None or geometry.get("type") not in ("Polygon", "MultiPolygon"):
            skipped += 1
            continue
        try:
            polygons.append(_valid(shape(geometry)))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            msg = f"{str(path)!r}: polygon {len(names)} ({name!r}) has malformed coordinates ({error})."
            raise ValueError(msg) from error
        names.append(name)
    if not polygons:
        msg = (
            f"{str(path)!r} holds no polygon with a class ({skipped} objects without). Set a class for the "
            "annotations in QuPath and export them again."
        )
        raise ValueError(msg)
    if skipped:
        warn(
            f"{skipped} objects without a class or of another form than a polygon were passed over; labels "
            f"read: {listing(sorted(set(names)))}."
        )
    return polygons, names


def _class_name(properties: dict[str, Any]) -> str | None:
    found = properties.get("classification")
    if isinstance(found, dict):
        found = found.get("name") or ": ".join(map(str, found.get("names", [])))
    return str(found).strip() or None if found else None


def _valid(polygon: Any) -> Any:
    """A polygon that crosses itself, as freehand drawing makes it, is repaired."""
    from shapely import make_valid

    return polygon if polygon.is_valid else make_valid(polygon)
