import base64
import io
from html.parser import HTMLParser

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoweave.report import write_ablation, write_report


class Page(HTMLParser):
    """Tags with their attributes, the text of every kind of tag, and whether every tag was closed."""

    VOID = frozenset(["meta", "img", "br", "link", "input"])

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.stack = [], {}, []
        self.feed(text)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack:
            self.text[self.stack[-1]][-1] += data


NASTY = "<script>alert('x')</script> & \"quotes\" café 肿瘤"


@pytest.fixture
def figure():
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.set_title("region <predicted>")
    yield figure
    plt.close(figure)


@pytest.fixture
def page(tmp_path, figure):
    frame = pd.DataFrame(
        {NASTY: ["fused", None], "macro_f1": [0.81234, np.nan], "n": [1200, 3], "tiny": [1.25e-7, 12345.6]},
        index=pd.Index(["a", NASTY], name="arm"),
    )
    plain = pd.DataFrame({"x": [1.0, 2.5], "whole": [2.0, 3.0]})
    path = write_report(
        tmp_path / "café" / "report.html",
        title=NASTY,
        intro="First.\n\nSecond <b>.",
        summary={"sections": 2, NASTY: NASTY, "accuracy": 0.5, "seen": True},
        sections=[
            ("Scores", frame),
            (NASTY, ["some text", figure]),
            ("Plain", plain),
        ],
    )
    return Page(path.read_text(encoding="utf-8"))


def test_nothing_is_loaded_or_run(page):
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href"}:
                assert value.startswith("data:image/png;base64,")
    assert "url(" not in "".join(page.text["style"])
    assert "@import" not in "".join(page.text["style"])


def test_text_is_escaped_and_arrives_unchanged(page):
    assert page.text["h1"] == [NASTY]
    assert page.text["title"] == [NASTY]
    assert page.text["h2"] == ["Scores", NASTY, "Plain"]
    assert page.text["p"] == ["First.", "Second <b>.", "some text"]
    assert page.text["dt"] == ["sections", NASTY, "accuracy", "seen"]
    assert page.text["dd"] == ["2", NASTY, "0.500", "yes"]


def test_images_decode_and_are_described(page):
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    pixels = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",", 1)[1])))
    pixels.load()
    assert pixels.format == "PNG"
    assert pixels.width > 200
    assert image["alt"] == f"{NASTY}: region <predicted>"


def test_tables_are_rounded_and_headed(page):
    heads = [(a.get("scope"), t) for (tag, a), t in zip(
        [x for x in page.tags if x[0] == "th"], page.text["th"], strict=True)]  # fmt: skip
    assert heads[:5] == [("col", "arm"), ("col", NASTY), ("col", "macro_f1"), ("col", "n"), ("col", "tiny")]
    assert [text for scope, text in heads if scope == "row"] == ["a", NASTY]
    dash = "\N{EN DASH}"
    assert page.text["td"][:8] == ["fused", "0.812", "1200", "1.2e-07", dash, dash, "3", "12346"]
    assert page.text["td"][8:] == ["1.000", "2", "2.500", "3"]
    assert page.tags[0][1] == {"lang": "en"}


def test_a_failed_report_leaves_the_old_one(tmp_path):
    path = write_report(tmp_path / "r.html", title="old", sections=[])
    with pytest.raises(TypeError, match="Section 'bad'"):
        write_report(path, title="new", sections=[("bad", 3)])
    assert Page(path.read_text(encoding="utf-8")).text["h1"] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_figures_stay_open(tmp_path, figure):
    write_report(tmp_path / "r.html", title="t", sections=[("f", figure)])
    assert plt.fignum_exists(figure.number)


def test_report_of_an_ablation(tmp_path):
    arms = {"fused": ("model", 0.7, np.nan), "gene": ("model", 0.5, 0.02), "depth": ("null", 0.3, 0.01)}
    results = pd.DataFrame(
        [
            {
                "fold": fold, "seed": seed, "arm": arm, "kind": kind, "transductive": False, "n_train": 90, "n": 28.0,
                "n_not_predicted": 2, "unseen_classes": "fat" if fold == "1" else "", "absent_classes": "",
                "accuracy": 0.9, "metric": "macro_f1", "reference": "fused", "groups": "12 donors", "leakage": "",
                "macro_f1": value + 0.1 * seed, "pooled": value, "low": value - 0.1, "high": value + 0.1,
                "difference": value - 0.7, "difference_low": value - 0.8, "difference_high": value - 0.6,
                "fold_difference": value - 0.7, "p_value": p, "p_holm": p,
            }
            for arm, (kind, value, p) in arms.items() for fold in ("0", "1") for seed in (0, 1)
        ]
    )  # fmt: skip
    page = Page(write_ablation(tmp_path / "a.html", results, title="Section A1").read_text())
    headings = ["Arms", "Differences to fused", "Nulls", "Folds", "macro_f1 by fold, mean over seeds"]
    assert page.text["h2"] == headings
    assert page.text["h1"] == ["Section A1"]
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    text = " ".join(page.text["p"])
    assert "The best null is depth: 0.300 (0.200 to 0.400)" in text
    assert "above its interval: fused." in text  # the genes' interval begins at 0.4
    assert "12 donors" in text
    assert "fat" in page.text["td"]
    assert page.text["td"].count("30") == 2  # rows tested: scored and not predicted
    with pytest.raises(KeyError, match="hw.tl.ablation"):
        write_ablation(tmp_path / "b.html", results.drop(columns="pooled"))
