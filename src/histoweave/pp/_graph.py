"""Neighbourhoods of spots: rings over the array where positions are known, else over coordinates."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from histoweave import _keys
from histoweave._calibration import array_grid, nearest_distance
from histoweave._resolve import sections
from histoweave._validate import require_key, require_number, warn

N_NEAREST = 6
LONGEST_EDGE = 3.0  # in median nearest-neighbour distances; longer edges cross gaps in the tissue


def ring_graphs(
    table: AnnData,
    *,
    n_rings: int = 2,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
) -> list[sp.csr_matrix]:
    """Return one boolean adjacency per ring around every observation.

    Where a section has integer array positions (``obs["array_row"]``, ``obs["array_col"]``), ring ``k`` holds
    the positions exactly ``k`` steps away on the array: 6 in ring 1 of a hexagonal array (Space Ranger's
    convention, columns step by 2 within a row), 4 in ring 1 of a square one (the sides, not the corners, as
    BayesSpace and squidpy take it). Steps are counted on the array itself, so a missing spot does not
    lengthen the way around it. Elsewhere ring 1 joins each observation with its 6 nearest (mutual, cut at
    three times the median nearest distance; :func:`squidpy.gr.spatial_neighbors_knn`) and ring ``k`` holds
    what is ``k`` steps away on that graph. Sections are never joined.

    Parameters
    ----------
    table
        The table.
    n_rings
        Number of rings, at least 1.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the coordinates, used where array positions are missing.

    Returns
    -------
    ``n_rings`` symmetric matrices ``(n_obs, n_obs)`` without self-loops; rings are disjoint.
    """
    require_number(n_rings, argument="n_rings", at_least=1, integer=True)
    pairs: list[list[np.ndarray]] = [[] for _ in range(n_rings)]
    for name, rows in sections(table, library_key).items():
        position = _whole_positions(table, rows, name)
        if position is not None:
            found = _lattice_rings(position, _offsets(array_grid(table, name, rows), n_rings))
        else:
            require_key(
                table.obsm,
                spatial_key,
                where="adata.obsm",
                argument="spatial_key",
                run="hw.io.read_visium(...)",
            )
            found = _coordinate_rings(np.asarray(table.obsm[spatial_key], dtype=float)[:, :2], rows, n_rings)
        for ring, local in zip(pairs, found, strict=True):
            ring.append(rows[local])
    return [_adjacency(np.concatenate(ring, axis=1), table.n_obs) for ring in pairs]


def ring_reach(table: AnnData, rows: np.ndarray, xy: np.ndarray, n_rings: int) -> float:
    """Return the distance from a row to the furthest one in its rings, in pixels.

    Parameters
    ----------
    table
        The table.
    rows
        Row numbers of a section.
    xy
        Their coordinates ``(n_rows, 2)``.
    n_rings
        Number of rings, 0 for none.
    """
    if not n_rings or len(rows) < 2:
        return 0.0
    position, wrong = _read_positions(table, rows)
    if position is not None and not wrong:
        return n_rings * float(np.nan_to_num(nearest_distance(xy)))
    pairs = np.concatenate(_coordinate_rings(xy, np.arange(len(xy)), n_rings), axis=1)
    return float(np.linalg.norm(xy[pairs[0]] - xy[pairs[1]], axis=1).max(initial=0.0))


def _whole_positions(table: AnnData, rows: np.ndarray, library_id: str) -> np.ndarray | None:
    """Return the integer array positions ``(n_rows, 2)`` of a section, ``None`` where it has none that can be used."""
    position, wrong = _read_positions(table, rows)
    if wrong == "gaps":
        warn(
            f"Section {library_id!r}: array positions are missing or not whole numbers in places; its "
            "neighbourhoods are built from coordinates instead."
        )
        return None
    if wrong == "shared":
        msg = (
            f"Section {library_id!r}: several rows share one array position (`obs['array_row']`, "
            "`obs['array_col']`). Do several sections share one name? Give each its own in "
            "`adata.obs['library_id']`, or pass the right `library_key=`."
        )
        raise ValueError(msg)
    return position


def _read_positions(table: AnnData, rows: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Return integer array positions ``(n_rows, 2)``, and ``"gaps"`` or ``"shared"`` where they cannot be used."""
    if _keys.ARRAY_ROW not in table.obs or _keys.ARRAY_COL not in table.obs:
        return None, ""
    values = table.obs[[_keys.ARRAY_ROW, _keys.ARRAY_COL]].iloc[rows].to_numpy(dtype=float, na_value=np.nan)
    missing = np.isnan(values).any(axis=1)
    if missing.any() or np.any(values != np.round(values)):
        return None, "" if missing.all() else "gaps"
    position = values.astype(np.int64)
    return position, "shared" if len(np.unique(position, axis=0)) < len(position) else ""


def _offsets(grid: str, n_rings: int) -> list[np.ndarray]:
    """Steps ``(row, col)`` to the positions of each ring."""
    reach = np.arange(-2 * n_rings, 2 * n_rings + 1)
    row, col = (axis.ravel() for axis in np.meshgrid(reach, reach, indexing="ij"))
    steps = np.abs(row) + np.abs(col)
    if grid == "hex":
        steps = np.where(steps % 2 == 0, np.maximum(np.abs(row), steps // 2), -1)
    return [np.stack([row, col], axis=1)[steps == k] for k in range(1, n_rings + 1)]


def _lattice_rings(position: np.ndarray, offsets: list[np.ndarray]) -> list[np.ndarray]:
    """Pairs ``(2, n_pairs)`` per ring, by looking every shifted position up among the sorted ones."""
    margin = 2 * len(offsets)
    position = position - position.min(axis=0) + margin
    width = position[:, 1].max() + margin + 1
    code = position @ np.array([width, 1])
    order = np.argsort(code)
    ordered = code[order]
    rings = []
    for ring in offsets:
        sources, targets = [], []
        for step in ring @ np.array([width, 1]):
            at = np.minimum(np.searchsorted(ordered, code + step), len(ordered) - 1)
            hit = np.flatnonzero(ordered[at] == code + step)
            sources.append(hit)
            targets.append(order[at[hit]])
        rings.append(np.stack([np.concatenate(sources), np.concatenate(targets)]))
    return rings


def _coordinate_rings(xy: np.ndarray, rows: np.ndarray, n_rings: int) -> list[np.ndarray]:
    """Pairs per ring from coordinates alone."""
    xy = xy[rows]
    if not np.isfinite(xy).all():
        msg = "Some coordinates are NaN or infinite; remove those rows or repair `adata.obsm['spatial']`."
        raise ValueError(msg)
    if len(rows) < 2:
        return [np.empty((2, 0), dtype=np.int64)] * n_rings
    from squidpy.gr import spatial_neighbors_knn

    points = AnnData(obs={"row": np.arange(len(rows))}, obsm={"spatial": xy})
    graph = spatial_neighbors_knn(points, n_neighs=min(N_NEAREST, len(rows) - 1), copy=True).distances.tocoo()
    short = graph.data <= LONGEST_EDGE * nearest_distance(xy)
    step = _adjacency(np.stack([graph.row, graph.col])[:, short], len(rows))
    step = (step + step.T).astype(bool)
    seen = sp.identity(len(rows), dtype=bool, format="csr")
    front, rings = seen, []
    for _ in range(n_rings):
        front = ((front @ step) > seen).tocsr()
        seen = (seen + front).astype(bool)
        rings.append(np.stack(front.nonzero()))
    return rings


def _adjacency(pairs: np.ndarray, n: int) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(pairs.shape[1], dtype=bool), (pairs[0], pairs[1])), shape=(n, n))
