"""Points in polygons, against a plain ray-casting test."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.io._polygons import label_points


def feature(ring: list, name: str | None = "tumor", kind: str = "Polygon") -> dict:
    properties = {"objectType": "annotation"}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    coordinates = [[*ring, ring[0]]]
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": properties,
    }


def write(path, features, *, bare: bool = False) -> None:
    path.write_text(
        json.dumps(features if bare else {"type": "FeatureCollection", "features": features}),
        encoding="utf-8",
    )


def inside(ring: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Ray casting, one edge at a time."""
    hits = np.zeros(len(xy), dtype=bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        crosses = (y0 > xy[:, 1]) != (y1 > xy[:, 1])
        at = x0 + (xy[:, 1] - y0) * (x1 - x0) / (y1 - y0 if y1 != y0 else 1)
        hits ^= crosses & (xy[:, 0] < at)
    return hits


SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100]]
INNER = [[20, 20], [40, 20], [40, 40], [20, 40]]


def test_star_shaped_polygon_against_ray_casting(tmp_path):
    generator = np.random.default_rng(0)
    angle = np.sort(generator.uniform(0, 2 * np.pi, 30))
    ring = np.column_stack([np.cos(angle), np.sin(angle)]) * generator.uniform(20, 90, (30, 1)) + 100
    xy = generator.uniform(0, 200, (2000, 2))
    write(tmp_path / "a.geojson", [feature(ring.tolist())])
    expected = inside(ring, xy)
    assert 100 < expected.sum() < 1900
    np.testing.assert_array_equal(label_points(tmp_path / "a.geojson", xy) == "tumor", expected)


@pytest.mark.parametrize("order", [1, -1])
def test_smallest_polygon_wins(tmp_path, order):
    write(tmp_path / "a.geojson", [feature(SQUARE, "stroma"), feature(INNER, "tumor")][::order], bare=order < 0)
    xy = np.array([[10.0, 10], [30, 30], [200, 200]])
    with pytest.warns(HistoweaveWarning, match="1 spots lie in polygons of different labels"):
        assert label_points(tmp_path / "a.geojson", xy).tolist() == ["stroma", "tumor", None]


def test_hole_multipolygon_and_edge(tmp_path):
    ring = feature(SQUARE, "stroma")
    ring["geometry"]["coordinates"].append([*INNER, INNER[0]])
    two = feature(SQUARE, "fat")
    shift = (np.array(SQUARE) + 500).tolist()
    two["geometry"] = {"type": "MultiPolygon", "coordinates": [[[*shift, shift[0]]]]}
    write(tmp_path / "a.geojson", [ring, two])
    xy = np.array([[30.0, 30], [50, 50], [550, 550], [100, 50]])
    assert label_points(tmp_path / "a.geojson", xy).tolist() == [None, "stroma", "fat", "stroma"]


def test_polygon_that_crosses_itself_is_repaired(tmp_path):
    write(tmp_path / "a.geojson", [feature([[0, 0], [100, 100], [100, 0], [0, 100]])])
    xy = np.array([[10.0, 50], [90, 50], [50, 10], [50, 90]])
    assert label_points(tmp_path / "a.geojson", xy).tolist() == ["tumor", "tumor", None, None]


def test_objects_without_class_are_counted(tmp_path):
    point = {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [1, 1]},
        "properties": {"classification": {"name": "x"}},
    }
    write(tmp_path / "a.geojson", [feature(SQUARE), feature(INNER, None), point])
    with pytest.warns(HistoweaveWarning, match="2 objects without a class or of another form"):
        assert label_points(tmp_path / "a.geojson", np.array([[30.0, 30.0]])).tolist() == ["tumor"]


def test_through_read_labels(tmp_path):
    adata = AnnData(np.ones((3, 1), dtype=np.float32), obsm={"spatial": np.array([[10.0, 10], [30, 30], [200, 200]])})
    write(tmp_path / "Präparat.geojson", [feature(INNER, "Tumor ß")])
    hw.io.read_labels(adata, tmp_path / "Präparat.geojson")
    assert [None if pd.isna(v) else v for v in adata.obs["region"]] == [None, "Tumor ß", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid GeoJSON"),
        ('{"type": "FeatureCollection", "features": []}', "no polygon with a class"),
        (json.dumps({"features": [feature(SQUARE, None)]}), r"no polygon with a class \(1 objects"),
        (json.dumps({"features": [feature([[0, 0]])]}), "malformed coordinates"),
        (
            json.dumps({"features": [feature(SQUARE)]}),
            r"x 0 to 100, y 0 to 100; spots x 900 to 950, y 700 to 800",
        ),
    ],
)
def test_bad_files(tmp_path, content, message):
    file = tmp_path / "a.geojson"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        label_points(file, np.array([[900.0, 700.0], [950.0, 800.0]]))
