"""Simulated sections: an H&E-like image, counts and regions whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import anndata as ad
from anndata import AnnData

from histoweave import _keys
from histoweave._random import SeedLike, rng
from histoweave._record import record
from histoweave._settings import track
from histoweave._validate import listing, require_number
from histoweave.datasets import _simulate_counts as counts
from histoweave.datasets._simulate_knobs import Knobs
from histoweave.datasets._simulate_table import build_section


def simulate_section(
    *,
    n_rows: int = 20,
    n_cols: int = 20,
    n_regions: int = 4,
    n_genes: int = 300,
    image_signal: float = 1.0,
    gene_signal: float = 1.0,
    image_regions: Sequence[int] | None = None,
    gene_regions: Sequence[int] | None = None,
    n_markers: int = 15,
    depth: float = 3000,
    dispersion: float = 0.2,
    dropout: float = 0.1,
    batch_effect: float = 0.0,
    stain_shift: float = 0.0,
    labelled_fraction: float = 1.0,
    layout: str = "blobs",
    tissue_fraction: float = 1.0,
    margin_um: float = 100.0,
    um_per_px: float = 1.0,
    array_grid: str = "hex",
    image: bool = True,
    library_id: str = "section_1",
    donor: str = "donor_1",
    random_state: SeedLike = 0,
) -> AnnData:
    """Simulate one section with an H&E-like image, counts and regions.

    Image and counts depend on the region through two independent knobs, so that what each modality can
    tell is known: at signal 0 nothing in it depends on the region, depth and stain included.

    Parameters
    ----------
    n_rows, n_cols
        Size of the spot array; neighbouring spots lie 100 um apart.
    n_regions
        Number of regions, named ``"region_1"``, ``"region_2"``, ...
    n_genes
        Number of genes, named ``"GENE0001"``, ...
    image_signal
        How much the regions differ in texture, from 0 (not at all) to 1 (as different tissues do).
    gene_signal
        Factor on the log fold changes of the marker genes, 0 or more; they are 0.7 to 1.5 at 1.
    image_regions
        Texture class of each region, ``n_regions`` integers from 0 to 7 (stroma, tumour, lymphoid, loose,
        muscle, neuropil, gland, necrosis); by default region ``k`` has class ``k``. Regions of one class
        cannot be told apart in the image.
    gene_regions
        Expression programme of each region, ``n_regions`` integers from 0; by default one each. Regions of
        one programme cannot be told apart by their genes.
    n_markers
        Marker genes of each programme.
    depth
        Mean counts a spot, before dropout; between spots it varies log-normally (sd of the log 0.4).
    dispersion
        ``a`` in the variance ``mean + a * mean ** 2`` of a count; 0 is Poisson.
    dropout
        Probability that a count is lost.
    batch_effect
        Standard deviation of the section's shift of each log gene mean, and of its log depth.
    stain_shift
        How much the section's stain may differ from the textbook's: 0 not, 1 as much as between hospitals.
    labelled_fraction
        Share of each region's spots that keep their label in ``obs["region"]``, drawn at random; at least
        one a region unless it is 0.
    layout
        ``"blobs"`` (patches of any shape) or ``"layers"`` (wavy bands, each beside the next).
    tissue_fraction
        Share of the array that is covered by tissue; spots off tissue are left out.
    margin_um
        Empty slide around the tissue, in um.
    um_per_px
        Size of an image pixel in um.
    array_grid
        ``"hex"`` (Visium; ``array_col`` steps by 2 within a row) or ``"square"``.
    image
        Paint the image. Without it the table has no ``uns["spatial"]`` images.
    library_id, donor
        Names of the section and of its donor.
    random_state
        Seed. The same seed gives the same section.

    Returns
    -------
    AnnData
        One row a spot on tissue:

        - ``X`` and ``layers["counts"]``: raw counts, float32 CSR ``(n_spots, n_genes)``
        - ``obs``: ``library_id``, ``donor``, ``in_tissue``, ``array_row``, ``array_col``, ``region`` (missing
          where unlabelled) and ``region_truth``
        - ``var["marker_of"]``: ``"programme_1"``, ... or ``""``
        - ``obsm["spatial"]``: full-resolution pixels (x, y)
        - ``uns["spatial"][library_id]``: the image at full resolution as ``"hires"`` (scale factor 1), a
          ``"lowres"`` one, ``scalefactors`` with ``microns_per_pixel``, and ``metadata``
        - ``uns["histoweave"]["simulate_section"]``: the arguments and the truth (texture and programme of
          each region, stain vectors)

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong kind or out of range; the message says which and why.

    Notes
    -----
    Haematoxylin is that of [1]_, eosin that of [2]_; the image is composed in optical density, where stains
    add up. Regions share all random fields, so that only the parameters of their textures tell them apart.

    References
    ----------
    .. [1] Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 2001.
    .. [2] Macenko et al., ISBI 2009.

    Examples
    --------
    >>> import histoweave as hw
    >>> section = hw.datasets.simulate_section(n_rows=6, n_cols=6, n_regions=3, n_genes=60)
    >>> section.shape
    (36, 60)
    """
    names = {"library_id": library_id, "donor": donor}
    knobs = Knobs(
        n_rows=n_rows,
        n_cols=n_cols,
        n_regions=n_regions,
        n_genes=n_genes,
        image_signal=image_signal,
        gene_signal=gene_signal,
        image_regions=image_regions,
        gene_regions=gene_regions,
        n_markers=n_markers,
        depth=depth,
        dispersion=dispersion,
        dropout=dropout,
        batch_effect=batch_effect,
        stain_shift=stain_shift,
        labelled_fraction=labelled_fraction,
        layout=layout,
        tissue_fraction=tissue_fraction,
        margin_um=margin_um,
        um_per_px=um_per_px,
        array_grid=array_grid,
        image=image,
    )
    shared, own = rng(random_state).spawn(2)
    programmes = counts.draw_programmes(shared, knobs.n_programmes, n_genes, n_markers)
    section, truth = build_section(own, knobs, programmes, counts.draw_batch(shared, n_genes), **names)
    record(
        section,
        "simulate_section",
        "datasets.simulate_section",
        names | asdict(knobs),
        random_state=random_state,
        truth=truth,
    )
    return section


def simulate_sections(
    n_sections: int = 4,
    *,
    n_donors: int | None = None,
    batch_effect: float = 0.2,
    stain_shift: float = 0.3,
    random_state: SeedLike = 0,
    **section: Any,
) -> AnnData:
    """Simulate several sections of one tissue as a single table.

    They share texture classes and marker genes, so that what is learned on one holds on the next, and differ
    in layout, stain, depth and batch effect. Sections of one donor share 70 % of the batch variance.

    Parameters
    ----------
    n_sections
        Number of sections, named ``"section_1"``, ...
    n_donors
        Number of donors, named ``"donor_1"``, ...; one a section by default.
    batch_effect, stain_shift
        As in :func:`simulate_section`.
    random_state
        Seed. The same seed gives the same sections.
    section
        Anything else :func:`simulate_section` takes, except ``library_id`` and ``donor``.

    Returns
    -------
    AnnData
        The sections one after the other, as described in :func:`simulate_section`; row names start with the
        section's, and ``uns["spatial"]`` has an entry for each. The record is
        ``uns["histoweave"]["simulate_sections"]``.

    Raises
    ------
    TypeError, ValueError
        An argument is unknown, of the wrong kind or out of range.

    Examples
    --------
    >>> import histoweave as hw
    >>> table = hw.datasets.simulate_sections(2, n_rows=6, n_cols=6, n_regions=3, n_genes=60)
    >>> table.obs["library_id"].value_counts().to_dict()
    {'section_1': 36, 'section_2': 36}
    """
    require_number(n_sections, argument="n_sections", at_least=1, integer=True)
    n_donors = n_sections if n_donors is None else n_donors
    require_number(n_donors, argument="n_donors", at_least=1, at_most=n_sections, integer=True)
    defaults = {
        k: v
        for k, v in (simulate_section.__kwdefaults__ or {}).items()
        if k not in ("library_id", "donor", "random_state")
    }
    unknown = sorted(set(section) - set(defaults))
    if unknown:
        msg = f"Unknown argument {listing(unknown)}; each section takes {listing(sorted(defaults), 30)}."
        raise TypeError(msg)
    knobs = Knobs(**defaults | section | {"batch_effect": batch_effect, "stain_shift": stain_shift})

    shared, *own = rng(random_state).spawn(n_sections + 1)
    programmes = counts.draw_programmes(shared, knobs.n_programmes, knobs.n_genes, knobs.n_markers)
    donor_batches = [counts.draw_batch(shared, knobs.n_genes) for _ in range(n_donors)]
    tables, truth = [], {}
    for i in track(range(n_sections), "Simulating sections"):
        donor, library_id = i * n_donors // n_sections, f"section_{i + 1}"
        table, truth[library_id] = build_section(
            own[i], knobs, programmes, donor_batches[donor], library_id=library_id, donor=f"donor_{donor + 1}"
        )
        tables.append(table)
    out = ad.concat(tables, merge="same")
    out.uns["spatial"] = {library: t.uns["spatial"][library] for library, t in zip(truth, tables, strict=True)}
    for name in (_keys.LIBRARY, _keys.DONOR):
        out.obs[name] = out.obs[name].astype("category")
    params = {"n_sections": n_sections, "n_donors": n_donors} | asdict(knobs)
    record(out, "simulate_sections", "datasets.simulate_sections", params, random_state=random_state, truth=truth)
    return out
