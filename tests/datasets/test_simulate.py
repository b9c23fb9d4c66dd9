from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import histoweave as hw


def tile_statistics(adata: AnnData, side_um: float = 90) -> np.ndarray:
    """Means, spreads and gradients of the colours around each spot, written without the package."""
    (library,) = adata.uns["spatial"]
    entry = adata.uns["spatial"][library]
    image = entry["images"]["hires"].astype(float)
    half = round(side_um / entry["scalefactors"]["microns_per_pixel"] / 2)
    rows = []
    for x, y in np.rint(adata.obsm["spatial"]).astype(int):
        tile = image[y - half : y + half, x - half : x + half]
        gradient = [np.abs(np.diff(tile, axis=a)).mean(axis=(0, 1)) for a in (0, 1)]
        rows.append(np.concatenate([tile.mean(axis=(0, 1)), tile.std(axis=(0, 1)), *gradient]))
    return np.array(rows)


def accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return cross_val_score(model, features, labels, cv=5).mean()


def log_counts(adata: AnnData) -> np.ndarray:
    return np.log1p(adata.X.toarray())


@pytest.fixture(scope="module")
def silent() -> AnnData:
    return hw.datasets.simulate_section(
        image_signal=0, gene_signal=0, n_genes=80, um_per_px=2, n_regions=3, random_state=5
    )


@pytest.fixture(scope="module")
def merged() -> AnnData:
    """Four regions: 3 and 4 alike in the image, 1 and 2 alike in genes."""
    return hw.datasets.simulate_section(
        image_regions=[0, 1, 2, 2], gene_regions=[0, 0, 1, 2], n_genes=120, um_per_px=2, random_state=2
    )


def test_layout_of_the_table(section: AnnData) -> None:
    assert section.shape == (144, 120)
    assert section.obs_names.is_unique
    assert section.obs_names[0].startswith("section_1_")
    assert (section.X != section.layers["counts"]).nnz == 0
    assert section.X is not section.layers["counts"]
    assert section.X.dtype == np.float32
    assert np.array_equal(section.X.data, np.rint(section.X.data))
    assert section.obs["region"].notna().all()
    assert (section.obs["region"] == section.obs["region_truth"]).all()
    assert section.obs["region"].value_counts().between(24, 48).all()  # about a quarter each
    entry = section.uns["spatial"]["section_1"]
    assert entry["metadata"] == {"platform": "simulated", "array_pitch_um": 100.0, "array_grid": "hex"}
    assert entry["scalefactors"]["microns_per_pixel"] == 2.0
    hires, lowres = entry["images"]["hires"], entry["images"]["lowres"]
    assert hires.dtype == np.uint8
    assert lowres.shape[0] == pytest.approx(hires.shape[0] * entry["scalefactors"]["tissue_lowres_scalef"], abs=1)


@pytest.mark.parametrize("grid", ["hex", "square"])
def test_pitch_is_100_um_and_positions_follow_space_ranger(grid: str) -> None:
    adata = hw.datasets.simulate_section(
        n_rows=6, n_cols=7, n_regions=2, n_genes=40, array_grid=grid, um_per_px=0.8, image=False
    )
    xy = adata.obsm["spatial"] * 0.8
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_allclose(distance.min(axis=1), 100)
    assert (distance < 101).sum(axis=1).max() == (6 if grid == "hex" else 4)
    row, col = adata.obs["array_row"], adata.obs["array_col"]
    if grid == "hex":
        assert (row % 2 == col % 2).all()
    assert not adata.uns["spatial"]["section_1"]["images"]


def test_tissue_lies_under_every_spot_and_the_slide_is_white_around_it() -> None:
    adata = hw.datasets.simulate_section(
        tissue_fraction=0.6, image_regions=[0, 1, 2, 4], n_genes=80, um_per_px=2, random_state=1
    )
    assert adata.n_obs == 240
    image = adata.uns["spatial"]["section_1"]["images"]["hires"]
    border = np.concatenate([image[:5].reshape(-1, 3), image[:, :5].reshape(-1, 3)])
    assert border.mean() > 240
    means = tile_statistics(adata, 55)[:, :3]
    assert (means.min(axis=1) < 225).all()


def test_counts_have_the_moments_of_the_negative_binomial() -> None:
    """A single region, no batch: mean and variance follow from the log-normal depth in closed form."""
    depth, dispersion, dropout, spread = 2000.0, 0.3, 0.2, 0.4
    adata = hw.datasets.simulate_section(
        n_rows=60, n_cols=60, n_regions=1, n_genes=40, n_markers=1, depth=depth, dispersion=dispersion,
        dropout=dropout, image=False, random_state=3,
    )  # fmt: skip
    counts = adata.X.toarray().astype(float)
    keep = 1 - dropout
    assert counts.sum(axis=1).mean() == pytest.approx(keep * depth, rel=0.03)
    mean = counts.mean(axis=0) / keep  # of the count before dropout
    second = mean + mean**2 * np.exp(spread**2) * (1 + dispersion)
    expected = keep * second - (keep * mean) ** 2
    ratio = counts.var(axis=0) / expected
    assert np.median(ratio) == pytest.approx(1, abs=0.06)
    assert (np.abs(ratio - 1) < 0.35).all()


def test_markers_are_recovered_exactly_and_nothing_else_differs() -> None:
    adata = hw.datasets.simulate_section(
        n_rows=30, n_cols=30, n_regions=3, n_genes=90, depth=20_000, dropout=0, image=False
    )
    share = adata.X.toarray()
    share = np.log1p(share / share.sum(axis=1, keepdims=True) * 1e4)
    p = np.empty((3, 90))
    for k in range(3):
        here = (adata.obs["region"] == f"region_{k + 1}").to_numpy()
        p[k] = stats.ttest_ind(share[here], share[~here], alternative="greater").pvalue
        marked = (adata.var["marker_of"] == f"programme_{k + 1}").to_numpy()
        assert set(np.flatnonzero(p[k] < 1e-6)) == set(np.flatnonzero(marked))
    unmarked = p[:, (adata.var["marker_of"] == "").to_numpy()]
    assert stats.kstest(unmarked.ravel(), "uniform").pvalue > 1e-3


def test_nothing_tells_regions_apart_at_zero_signal(silent: AnnData) -> None:
    labels = silent.obs["region"].to_numpy()
    majority = silent.obs["region"].value_counts(normalize=True).max()
    depth = np.log(np.asarray(silent.X.sum(axis=1)))
    for features in (tile_statistics(silent), log_counts(silent), depth):
        assert accuracy(features, labels) < majority + 0.08


def test_each_modality_tells_what_it_was_made_to_tell(merged: AnnData) -> None:
    labels = merged.obs["region"].to_numpy()
    image, genes = tile_statistics(merged), log_counts(merged)
    pair = {"12": np.isin(labels, ["region_1", "region_2"]), "34": np.isin(labels, ["region_3", "region_4"])}
    assert accuracy(image[pair["12"]], labels[pair["12"]]) > 0.9
    assert accuracy(image[pair["34"]], labels[pair["34"]]) < 0.62
    assert accuracy(genes[pair["34"]], labels[pair["34"]]) > 0.95
    assert accuracy(genes[pair["12"]], labels[pair["12"]]) < 0.62
    assert accuracy(np.hstack([image, genes]), labels) > 0.9


def test_signal_grows_with_the_knob() -> None:
    scores = []
    for signal in (0.0, 0.15, 1.0):
        adata = hw.datasets.simulate_section(
            n_rows=14, n_cols=14, image_signal=signal, n_genes=80, um_per_px=2, random_state=4
        )
        scores.append(accuracy(tile_statistics(adata), adata.obs["region"].to_numpy()))
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.85


def test_same_seed_same_section_other_seed_another() -> None:
    def make(seed: object) -> AnnData:
        return hw.datasets.simulate_section(
            n_rows=6,
            n_cols=6,
            n_genes=60,
            um_per_px=4,
            labelled_fraction=0.5,
            stain_shift=1,
            random_state=seed,
        )

    first, again, other = make(0), make(0), make(1)
    images = [a.uns["spatial"]["section_1"]["images"]["hires"] for a in (first, again, other)]
    assert np.array_equal(images[0], images[1])
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert not np.array_equal(images[0], images[2])
    assert (first.X != other.X).nnz > 0
    with_generator = make(np.random.default_rng(0))
    assert (first.X != with_generator.X).nnz == 0


def test_image_and_genes_do_not_move_each_other() -> None:
    kwargs = {"n_rows": 6, "n_cols": 6, "n_genes": 60, "um_per_px": 4}
    a = hw.datasets.simulate_section(**kwargs)
    b = hw.datasets.simulate_section(**kwargs, image_signal=0.5)
    c = hw.datasets.simulate_section(**kwargs, gene_signal=0.5)
    assert (a.X != b.X).nnz == 0
    assert np.array_equal(*(s.uns["spatial"]["section_1"]["images"]["hires"] for s in (a, c)))


def test_labelled_fraction_keeps_each_region() -> None:
    adata = hw.datasets.simulate_section(n_rows=10, n_cols=10, n_genes=60, labelled_fraction=0.1, image=False)
    labelled = adata.obs["region"].notna()
    assert labelled.sum() == pytest.approx(10, abs=4)
    assert set(adata.obs["region"][labelled]) == set(adata.obs["region_truth"])
    assert (adata.obs["region"][labelled] == adata.obs["region_truth"][labelled]).all()
    none = hw.datasets.simulate_section(n_rows=10, n_cols=10, n_genes=60, labelled_fraction=0, image=False)
    assert none.obs["region"].isna().all()


def test_layers_lie_beside_the_next_only() -> None:
    adata = hw.datasets.simulate_section(n_regions=5, n_genes=80, layout="layers", image=False)
    region = adata.obs["region"].cat.codes.to_numpy().astype(int)
    xy = adata.obsm["spatial"]
    near = np.linalg.norm(xy[:, None] - xy[None], axis=2) < 105
    assert np.abs(region[:, None] - region[None])[near].max() == 1


def test_sections_share_markers_and_differ_in_the_rest(sections: AnnData) -> None:
    assert sections.n_obs == 400
    assert sections.obs_names.is_unique
    assert sections.obs.groupby("library_id", observed=True)["donor"].nunique().eq(1).all()
    assert sections.obs["donor"].nunique() == 4
    assert set(sections.uns["spatial"]) == set(sections.obs["library_id"])
    assert (sections.var["marker_of"] != "").sum() == 45
    first, second = (sections[sections.obs["library_id"] == f"section_{i}"] for i in (1, 2))
    assert (first.obs["region"].to_numpy() != second.obs["region"].to_numpy()).any()
    # What is learned on three sections holds on the fourth.
    genes, labels = log_counts(sections), sections.obs["region"].to_numpy()
    test = (sections.obs["library_id"] == "section_4").to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(genes[~test], labels[~test])
    assert model.score(genes[test], labels[test]) > 0.9


def test_sections_of_one_donor_are_closer_in_batch_effect() -> None:
    adata = hw.datasets.simulate_sections(
        6, n_donors=3, n_rows=10, n_cols=10, n_regions=1, n_genes=400, batch_effect=0.5, image=False
    )
    mean = np.array(
        [np.log(adata[adata.obs["library_id"] == f"section_{i + 1}"].X.toarray().mean(axis=0) + 0.01) for i in range(6)]
    )
    mean -= mean.mean(axis=1, keepdims=True)
    donor = np.arange(6) // 2
    difference = np.array([[(mean[i] - mean[j]).std() for j in range(6)] for i in range(6)])
    same = (donor[:, None] == donor[None]) & ~np.eye(6, dtype=bool)
    other = donor[:, None] != donor[None]
    assert difference[same].max() < difference[other].min()
    # Variance of a difference: 2 * 0.3 * 0.25 within a donor, 2 * 0.25 between donors.
    assert difference[other].mean() == pytest.approx(np.sqrt(0.5), rel=0.15)
    assert difference[same].mean() == pytest.approx(np.sqrt(0.15), rel=0.2)


def test_stain_shift_moves_colours_between_sections() -> None:
    def spread(shift: float) -> float:
        adata = hw.datasets.simulate_sections(
            4, n_rows=6, n_cols=6, n_regions=1, n_genes=30, um_per_px=4, stain_shift=shift
        )
        images = [e["images"]["hires"] for e in adata.uns["spatial"].values()]
        return np.std([i[60:-60, 60:-60].mean(axis=(0, 1)) for i in images], axis=0).max()

    assert spread(1.0) > 3 * spread(0.0)


@pytest.mark.parametrize("name", ["section", "sections"])
def test_round_trip(name: str, request: pytest.FixtureRequest, tmp_path) -> None:
    adata = request.getfixturevalue(name)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (back.X != adata.X).nnz == 0
    assert back.obs.equals(adata.obs)
    for library, entry in adata.uns["spatial"].items():
        assert np.array_equal(back.uns["spatial"][library]["images"]["hires"], entry["images"]["hires"])
    key = f"simulate_{name}"
    assert back.uns["histoweave"][key]["params"]["n_genes"] == 120
    truth = back.uns["histoweave"][key]["truth"]
    truth = truth["section_1"] if name == "sections" else truth
    assert truth["texture"]["region_2"] == "tumour"
    assert truth["programme"]["region_2"] == "programme_2"


def test_fixtures_are_fresh_copies(section: AnnData) -> None:
    assert section.uns.pop("spatial")


def test_fixtures_are_fresh_copies_again(section: AnnData) -> None:
    assert "spatial" in section.uns


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_rows": 1}, ValueError, "n_rows"),
        ({"n_cols": 2.5}, TypeError, "n_cols"),
        ({"n_regions": 200}, ValueError, "n_regions"),
        ({"n_genes": 20}, ValueError, "60 are needed"),
        ({"image_signal": 1.2}, ValueError, "image_signal"),
        ({"gene_signal": float("nan")}, TypeError, "gene_signal"),
        ({"image_regions": [0, 1]}, ValueError, "image_regions"),
        ({"image_regions": [0, 1, 2, 8]}, ValueError, "from 0 to 7"),
        ({"gene_regions": [0, 1, 2, -1]}, ValueError, "gene_regions"),
        ({"gene_regions": [0, 1, 2, 0.5]}, ValueError, "gene_regions"),
        ({"n_regions": 9, "n_genes": 200}, ValueError, "image_regions="),
        ({"depth": 0}, ValueError, "depth"),
        ({"dropout": 1}, ValueError, "dropout"),
        ({"layout": "stripes"}, ValueError, "'blobs', 'layers'"),
        ({"array_grid": "tri"}, ValueError, "'hex', 'square'"),
        ({"tissue_fraction": 0.01}, ValueError, "n_regions"),
        ({"um_per_px": 0}, ValueError, "um_per_px"),
        ({"random_state": "a"}, TypeError, "random_state"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        hw.datasets.simulate_section(**arguments)


def test_bad_arguments_of_sections() -> None:
    with pytest.raises(TypeError, match=r"'n_spots'.*'n_rows'"):
        hw.datasets.simulate_sections(2, n_spots=3)
    with pytest.raises(ValueError, match="n_donors"):
        hw.datasets.simulate_sections(2, n_donors=3)
