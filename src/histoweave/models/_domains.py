"""Domains of tissue: representations smoothed in space, a graph of neighbours and its communities, or a mixture."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from histoweave.models._sections import SectionScaler

LOWEST, HIGHEST = 1e-3, 1e2  # resolutions between which a number of communities is looked for
N_HALVINGS = 25
MOST_DOMAINS = 15  # that the criterion may choose
TINY = 1e-12
IMPUTED_FROM = 10  # rows that a missing representation is taken from


def smooth_components(
    X: np.ndarray, rows_of: Mapping[str, np.ndarray], rings: Sequence[sp.csr_matrix], n_components: int
) -> np.ndarray:
    """Return principal components ``(n, c)`` of the means over each row and its rings; NaN rows stay NaN.

    Values are standardised within each section. Components of means over neighbourhoods keep what varies over
    longer distances than a ring. Their variances sum to 1, so that representations of any width weigh alike.
    """
    from sklearn.decomposition import PCA

    X = SectionScaler().fit(X).transform(X, rows_of)
    measured = ~np.isnan(X).any(axis=1)
    n = int(measured.sum())
    disc = sp.identity(n, dtype=np.float32, format="csr")
    for ring in rings:
        disc = disc + ring[measured][:, measured].astype(np.float32)
    X[measured] = (disc @ X[measured]) / disc.sum(axis=1).A1[:, None] if rings else X[measured]
    centred = SectionScaler(scale=False).fit(X).transform(X, rows_of)[measured]
    values = PCA(min(n_components, *centred.shape), svd_solver="full").fit_transform(centred)
    out = np.full((len(X), values.shape[1]), np.nan)
    out[measured] = values / max(np.sqrt((values**2).sum(axis=1).mean()), 1e-12)
    return out


def neighbour_graph(X: np.ndarray, section: np.ndarray, n_neighbors: int) -> sp.csr_matrix:
    """Return the graph ``(n, n)`` of nearest neighbours, weighted by the share of neighbours in common (Jaccard).

    Every row has the same number of neighbours in each section (Polanski et al. 2020, Bioinformatics 36:964), so
    that sections are joined however far apart a batch effect has put them.
    """
    from sklearn.neighbors import NearestNeighbors

    everyone = np.arange(len(X))
    names = list(dict.fromkeys(section))
    share = max(2, round(n_neighbors / len(names)))
    rows, columns = [everyone], [everyone]
    for name in names:
        there = everyone[section == name]
        search = NearestNeighbors(n_neighbors=min(share, len(there))).fit(X[there])
        for own, group in ((True, there), (False, everyone[section != name])):
            k = min(share, len(there) - own)
            if k and len(group):  # without points to look up, each asks for others than itself
                near = search.kneighbors(None if own else X[group], n_neighbors=k, return_distance=False)
                rows.append(np.repeat(group, k))
                columns.append(there[near].ravel())
    pairs = (np.concatenate(rows), np.concatenate(columns))
    near = sp.csr_matrix((np.ones(len(pairs[0])), pairs), shape=(len(X), len(X)))
    size = near.sum(axis=1).A1
    shared = (near @ near.T).multiply(near.maximum(near.T)).tocoo()
    weight = shared.data / (size[shared.row] + size[shared.col] - shared.data)
    apart = shared.row != shared.col
    return sp.csr_matrix((weight[apart], (shared.row[apart], shared.col[apart])), shape=near.shape)


class Communities:
    """Leiden communities of a weighted graph (Traag, Waltman & van Eck, 2019, Scientific Reports 9:5233).

    Parameters
    ----------
    graph
        Symmetric weights ``(n, n)``.
    """

    def __init__(self, graph: sp.csr_matrix) -> None:
        import igraph

        upper = sp.triu(graph, 1).tocoo()
        self._weights = graph
        self._graph = igraph.Graph(n=graph.shape[0], edges=np.stack([upper.row, upper.col], axis=1))
        self._graph.es["weight"] = upper.data

    def cut(self, resolution: float, seed: int) -> np.ndarray:
        """Return the community of every row, 0 the largest; at resolution 1 their modularity is the largest."""
        import leidenalg

        found = leidenalg.find_partition(
            self._graph,
            leidenalg.RBConfigurationVertexPartition,
            weights="weight",
            resolution_parameter=resolution,
            seed=seed,
        )
        return by_size(np.asarray(found.membership))

    def cut_into(self, k: int, seed: int, start: float = 1.0) -> tuple[np.ndarray, float]:
        """Return ``k`` communities and the resolution that gives them, found by halving an interval.

        Where no resolution gives exactly ``k``, the next larger number found is reduced to ``k``: the smallest
        community joins the one it is linked to most strongly, again and again.
        """
        low, high, middle = np.log(LOWEST), np.log(HIGHEST), np.log(start)
        more: tuple[np.ndarray, float] | None = None
        for _ in range(N_HALVINGS):
            labels = self.cut(float(np.exp(middle)), seed)
            found = int(labels.max()) + 1
            if found == k:
                return labels, float(np.exp(middle))
            if found > k:
                high = middle
                if more is None or found <= more[0].max() + 1:
                    more = labels, float(np.exp(middle))
            else:
                low = middle
            middle = (low + high) / 2
        if more is None:
            msg = f"The rows fall into {found} communities at most: `n_domains={k}` is too many. Ask for fewer."
            raise ValueError(msg)
        return self._merge(more[0], k), more[1]

    def _merge(self, labels: np.ndarray, k: int) -> np.ndarray:
        while labels.max() >= k:
            member = sp.csr_matrix((np.ones(len(labels)), (np.arange(len(labels)), labels)))
            links = (member[:, [-1]].T @ self._weights @ member).toarray().ravel()[:-1]
            mean = links / member.sum(axis=0).A1[:-1]
            labels = by_size(np.where(labels == labels.max(), mean.argmax(), labels))
        return labels


def mixture(X: np.ndarray, k: int | None, seed: int, *, shared: float = 1.0) -> tuple[np.ndarray, int]:
    """Return the component of every row in a mixture of Gaussians, 0 the largest, and their number.

    Components have one spherical covariance and equal weights, and every row belongs to the most probable one: the
    classification EM of that mixture is k-means (Celeux & Govaert, 1992).

    Parameters
    ----------
    X
        Rows to divide ``(n, d)``.
    k
        Number of components. ``None``: that of lowest `criterion`, from 1 to 15.
    seed
        Seed.
    shared
        How many rows the values of one row were averaged over: only ``n / shared`` observations are independent.

    Raises
    ------
    ValueError
        More components than different rows.
    """
    if k is None:
        n = len(X) / shared
        most = min(MOST_DOMAINS, int(n), len(X) - X.shape[1] - 1)  # with more, nothing is left to judge them by
        found = [_k_means(X, k, seed) for k in range(1, max(1, most) + 1)]
        best = min(found, key=lambda labels: criterion(X, labels, n))
        return best, int(best.max()) + 1
    best = _k_means(X, k, seed)
    if best.max() + 1 < k:
        msg = f"The rows have only {best.max() + 1} different values: `n_domains={k}` is too many. Ask for fewer."
        raise ValueError(msg)
    return best, k


def _k_means(X: np.ndarray, k: int, seed: int) -> np.ndarray:
    with warnings.catch_warnings():  # fewer different rows than components: dealt with by those who ask
        warnings.simplefilter("ignore", ConvergenceWarning)
        return by_size(KMeans(k, n_init=10, random_state=seed).fit_predict(X))


def criterion(X: np.ndarray, labels: np.ndarray, n: float) -> float:
    """Return the Bayesian information criterion of components that share any covariance, for ``n`` observations.

    Its likelihood is that of every row being of its component, ``n (log |W| + 2 log k)`` with the covariance ``W``
    within components: Marriott's criterion, which does not fall by dividing one cloud. The centres of ``k`` components
    span ``k - 1`` dimensions, and their places in these are the parameters that are counted.

    Parameters
    ----------
    X
        Rows ``(n_rows, d)``, more than ``d + k``.
    labels
        Component of every row, from 0.
    n
        Number of independent observations.

    References
    ----------
    Marriott (1971), Biometrics 27:501.
    """
    k, d = int(labels.max()) + 1, X.shape[1]
    centres = np.stack([X[labels == c].mean(axis=0) for c in range(k)])
    within = (X - centres[labels]).T @ (X - centres[labels]) / len(X)
    floor = TINY * max(np.trace(within), TINY) * np.identity(d)  # a column that does not vary decides nothing
    parameters = (k - 1) * min(d, k - 1)
    return float(n * (np.linalg.slogdet(within + floor)[1] + 2 * np.log(k)) + parameters * np.log(n))


def filled(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Put representations side by side; what a row lacks is the mean over the 10 rows most like it in the others."""
    from sklearn.impute import KNNImputer

    X = np.concatenate(blocks, axis=1)
    return KNNImputer(n_neighbors=IMPUTED_FROM).fit_transform(X) if np.isnan(X).any() else X


def by_size(labels: np.ndarray) -> np.ndarray:
    """Renumber a partition so that 0 is the largest part; equal parts in order of appearance."""
    _, first, inverse, count = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), dtype=int)
    rank[np.lexsort((first, -count))] = np.arange(len(first))
    return rank[inverse]


def most_central(partitions: Sequence[np.ndarray]) -> tuple[int, float]:
    """Return which partition agrees best with the others, and the mean adjusted Rand index over all pairs.

    The mean is NaN for a single partition.
    """
    n = len(partitions)
    if n == 1:
        return 0, float("nan")
    score: Callable[[int, int], float] = lambda i, j: adjusted_rand_score(partitions[i], partitions[j])  # noqa: E731
    pairs = np.array([[score(i, j) if i < j else 0.0 for j in range(n)] for i in range(n)])
    pairs += pairs.T
    return int(pairs.sum(axis=1).argmax()), float(pairs.sum() / (n * (n - 1)))
