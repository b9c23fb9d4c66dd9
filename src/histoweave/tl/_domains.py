"""Domains of tissue without labels, from image and genes together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from histoweave import _keys
from histoweave._random import child_seeds
from histoweave._record import record
from histoweave._resolve import section_column, sections, working_copy
from histoweave._settings import track
from histoweave._validate import listing, require_choice, require_key, require_matrix, require_number, warn
from histoweave.models import _domains
from histoweave.pp._graph import ring_graphs

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

METHODS = ("leiden", "mixture")
EMBEDDINGS = (_keys.X_IMAGE, _keys.X_GENE)


def domains(
    data: AnnData | SpatialData,
    *,
    use: str | Sequence[str] = EMBEDDINGS,
    n_domains: int | None = None,
    method: str = "leiden",
    resolution: float = 1.0,
    n_rings: int = 1,
    n_components: int = 15,
    n_neighbors: int = 30,
    n_seeds: int = 5,
    key_added: str = _keys.DOMAIN,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Divide tissue into domains without labels.

    Every representation is standardised within each section, averaged over neighbourhoods and reduced to principal
    components of total variance 1; the components are put side by side. ``"leiden"`` then joins each row with its
    nearest neighbours, evenly over all sections, and looks for communities of that graph; ``"mixture"`` fits
    spherical Gaussians of one size, each row in the nearest (k-means). No label is read, and nothing is chosen by one.

    Parameters
    ----------
    data
        AnnData or SpatialData object with embeddings.
    use
        Representations in ``obsm``, each ``(n_obs, d)``. Left at its default, those of the two that exist.
    n_domains
        Number of domains over all sections. ``"leiden"`` finds the resolution that gives it by halving an
        interval. ``None``: a fixed rule decides, ``resolution`` for ``"leiden"`` (at 1, communities of largest
        modularity) and a Bayesian information criterion over 1 to 15 for ``"mixture"``, see the notes.
    method
        ``"leiden"``, or ``"mixture"``, which on simulated sections finds more when told ``n_domains``, and less
        where image or genes are noise.
    resolution
        Of ``"leiden"`` without ``n_domains``; more gives more domains.
    n_rings
        Rings of the array that representations are averaged over. Wider is smoother: layers of one or two spots
        want 0. 0 also serves rows without positions.
    n_components
        Principal components of every representation (fewer where it has fewer).
    n_neighbors
        Nearest neighbours of a row, over all sections together; of ``"leiden"``.
    n_seeds
        How often to repeat with another seed. The result is the partition that agrees best with the others.
    key_added
        Name of the result in ``obs``.
    random_state
        Seed; the same one gives the same domains.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the coordinates, used where array positions are missing.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed copy. Writes

    - ``obs[key_added]``, categorical: ``"0"`` is the largest domain; missing where a row has no representation;
    - ``uns["histoweave"][key_added]``: the arguments, ``n_domains``, the ``rule`` that gave them, ``stability``
      (mean adjusted Rand index over all pairs of seeds; not there for one seed), and for ``"leiden"`` the
      ``resolution``.

    Raises
    ------
    KeyError
        A representation is not in ``obsm``.
    ValueError
        More domains than different rows, a representation that is partly NaN, or rows that have none in common.

    Notes
    -----
    A row that lacks a representation takes the mean of the 10 rows most like it in the others. Stability says how
    far the seed matters, not whether domains are true.

    The defaults were chosen on simulated sections. There, one graph of all components found more than the
    communities of one graph a representation taken together: where each tells other regions apart, the neighbours
    of each are random with respect to the rest.

    The criterion of ``"mixture"`` is Marriott's, penalised as by Bayes and for as many observations as there are
    neighbourhoods side by side: spots that share neighbours are not independent. On simulated sections of 400 spots it
    finds the number of regions that genes tell apart, and one where they tell none; from image statistics it finds
    too many.

    References
    ----------
    Traag, Waltman & van Eck (2019), Scientific Reports 9:5233 (Leiden); Polanski et al. (2020), Bioinformatics 36:964
    (neighbours from every section); Celeux & Govaert (1992), Computational Statistics & Data Analysis 14:315 (k-means
    as a mixture); Marriott (1971), Biometrics 27:501 (their number).

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=12, n_cols=12)
    >>> encoder = hw.tl.gene_encoder(adata, n_components=20)
    >>> hw.tl.domains(adata, n_domains=4)
    >>> hw.metrics.clustering(adata.obs["region_truth"], adata.obs["domain"])["adjusted_rand"] > 0.5
    True
    """
    require_choice(method, METHODS, argument="method")
    if n_domains is not None:
        require_number(n_domains, argument="n_domains", at_least=1, integer=True)
    require_number(resolution, argument="resolution", above=0)
    require_number(n_rings, argument="n_rings", at_least=0, integer=True)
    for name, value in (("n_components", n_components), ("n_neighbors", n_neighbors), ("n_seeds", n_seeds)):
        require_number(value, argument=name, at_least=1, integer=True)
    out, table = working_copy(data, table_key, copy=copy)
    use, values = representations(table, use)
    rows = _rows_to_divide(values, use, n_domains)
    rings = []
    if n_rings:
        rings = ring_graphs(table, n_rings=n_rings, library_key=library_key, spatial_key=spatial_key)
    rows_of = sections(table, library_key)
    blocks = [
        _domains.smooth_components(value.astype(np.float32), rows_of, rings, n_components)[rows] for value in values
    ]
    seeds = track(child_seeds(random_state, n_seeds), "Domains", unit="seed")
    X = _domains.filled(blocks)
    if method == "leiden":
        graph = _domains.neighbour_graph(X, section_column(table, library_key)[rows], n_neighbors)
        found, info = _leiden(_domains.Communities(graph), n_domains, resolution, seeds)
    else:
        shared = 1 + sum(ring[rows].sum() for ring in rings) / len(rows)
        found, info = _mixture(X, n_domains, seeds, shared)
    best, stability = _domains.most_central(found)
    labels = found[best]
    names = pd.Series(pd.NA, index=table.obs_names, dtype="object")
    names.iloc[rows] = labels.astype(str)
    table.obs[key_added] = pd.Categorical(names, categories=[str(k) for k in range(labels.max() + 1)])
    params = {"use": use, "n_domains": n_domains, "method": method, "n_rings": n_rings, "n_components": n_components}
    params |= {"n_seeds": n_seeds} | ({"n_neighbors": n_neighbors} if method == "leiden" else {})
    info |= {"n_domains": int(labels.max()) + 1} | ({"stability": stability} if n_seeds > 1 else {})
    packages = ("leidenalg", "igraph") if method == "leiden" else ("scikit-learn",)
    record(table, key_added, "tl.domains", params, random_state=random_state, sections_seen=rows_of,
           packages=packages, **info)  # fmt: skip
    return out if copy else None


def representations(table: AnnData, use: str | Sequence[str]) -> tuple[list[str], list[np.ndarray]]:
    """Return the keys and the checked arrays of ``use``; of the default, those that exist."""
    if use == EMBEDDINGS and any(key in table.obsm for key in use):
        use = [key for key in use if key in table.obsm]
    use = [use] if isinstance(use, str) else list(dict.fromkeys(use))
    if not use:
        msg = f"`use` names no representation; available in `adata.obsm`: {listing(table.obsm)}."
        raise ValueError(msg)
    run = "hw.tl.image_encoder(...)` or `hw.tl.gene_encoder(...)"
    for key in use:
        require_key(table.obsm, key, where="adata.obsm", argument="use", run=run)
    values = [require_matrix(table.obsm[key], table.n_obs, name=f"adata.obsm[{key!r}]") for key in use]
    for key, value in zip(use, values, strict=True):
        if np.isnan(value).any(axis=1).all():
            msg = f"`adata.obsm[{key!r}]` is NaN in every row. Leave it out of `use=`."
            raise ValueError(msg)
    return use, values


def _rows_to_divide(values: Sequence[np.ndarray], use: Sequence[str], n_domains: int | None) -> np.ndarray:
    """Return the rows with any representation, after checking that they can be compared."""
    there = np.stack([~np.isnan(value).any(axis=1) for value in values], axis=1)
    for key, n in zip(use, (~there).sum(axis=0), strict=True):
        if n and len(use) > 1:
            warn(f"{n} of {len(there)} rows have no {key!r}; what else they have places them.")
    rows = np.flatnonzero(there.any(axis=1))
    if len(rows) < len(there):
        warn(f"{len(there) - len(rows)} of {len(there)} rows have none of {listing(use)} and get no domain.")
    least = max(n_domains or 1, 3)
    if len(rows) < least:
        msg = f"{least} rows or more are needed, `adata` has {len(rows)} with a representation."
        raise ValueError(msg)
    patterns = np.unique(there[rows], axis=0).astype(int)
    if connected_components(patterns @ patterns.T)[0] > 1:
        msg = (
            f"Some rows have no representation of {listing(use)} in common with the others, directly or "
            "through further rows, so their domains cannot be matched. Call `hw.tl.domains` on each kind of rows "
            "by itself."
        )
        raise ValueError(msg)
    return rows


def _leiden(
    communities: _domains.Communities, n_domains: int | None, resolution: float, seeds: Iterable[int]
) -> tuple[list[np.ndarray], dict[str, Any]]:
    if n_domains is None:
        found = [communities.cut(resolution, seed) for seed in seeds]
        return found, {"rule": "resolution given", "resolution": float(resolution)}
    found, used = [], [1.0]
    for seed in seeds:
        labels, value = communities.cut_into(n_domains, seed, start=used[-1])
        found.append(labels)
        used.append(value)
    return found, {"rule": "n_domains given", "resolution": float(np.median(used[1:]))}


def _mixture(
    X: np.ndarray, n_domains: int | None, seeds: Iterable[int], shared: float
) -> tuple[list[np.ndarray], dict[str, Any]]:
    found, k = [], n_domains
    for seed in seeds:
        labels, k = _domains.mixture(X, k, seed, shared=shared)  # the number that the first seed chose holds for all
        found.append(labels)
    return found, {"rule": "n_domains given" if n_domains else "Bayesian information criterion"}
