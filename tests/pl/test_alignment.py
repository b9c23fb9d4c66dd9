import numpy as np
import pytest
from matplotlib.colors import to_rgb

import histoweave as hw


def test_outlines_lie_on_the_whole_image(table):
    ax = hw.pl.alignment(table)
    (spots,) = ax.collections
    middle = np.array([path.vertices[:-1].mean(axis=0) for path in spots.get_paths()])
    np.testing.assert_allclose(middle, table.obsm["spatial"])
    assert len(spots.get_facecolors()) == 0
    assert ax.images[0].get_extent() == [0, 700, 700, 0]
    assert ax.get_title() == "s1"


def test_spots_outside_the_image_stand_out_and_are_shown(table):
    table.obsm["spatial"][-1] = [900, 300]
    ax = hw.pl.alignment(table)
    edges = ax.collections[0].get_edgecolors()
    assert tuple(edges[-1][:3]) == to_rgb("#D55E00")
    assert len(np.unique(edges[:-1], axis=0)) == 1
    assert ax.get_xlim()[1] > 900


def test_several_sections_need_a_name(two):
    with pytest.raises(ValueError, match="'s1', 's2'"):
        hw.pl.alignment(two)
    assert not hw.pl.alignment(two, library_id="s2").images
    with pytest.raises(KeyError, match="s9"):
        hw.pl.alignment(two, library_id="s9")


def test_findings_of_this_section_stand_below(two):
    two.uns["histoweave"] = {
        "alignment": {
            "findings": {
                "library_id": np.array(["s1", "s1", "s1", "s2"]),
                "check": np.array(["image", "scale", "on_tissue", "image"]),
                "status": np.array(["ok", "warn", "fail", "fail"]),
                "message": np.array(["fine", "odd scale", "spots beside the tissue", "no image"]),
            }
        }
    }
    ax = hw.pl.alignment(two, library_id="s1")
    lines = [text.get_text() for text in ax.texts if "µm" not in text.get_text()]
    assert lines == ["fail  on_tissue: spots beside the tissue", "warn  scale: odd scale", "ok  image"]
    colors = {text.get_color() for text in ax.texts}
    assert len(colors) >= 3


def test_findings_of_the_package_are_read(table):
    found = hw.pp.check_alignment(table)
    lines = [text.get_text() for text in hw.pl.alignment(table).texts]
    for check in found["check"]:
        assert any(check in line for line in lines)
