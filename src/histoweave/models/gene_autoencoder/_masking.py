"""Which genes a spot must do without in a training step: random ones, whole programmes, or either."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from histoweave._validate import listing, require_choice, require_number

MASKINGS = ("random", "programme", "mixed")
MIN_GENES = 3  # a programme of which fewer genes are measured is not one
LEVELS = 2**16  # a mask is drawn from 16 random bits a gene: four genes for each 64-bit number


class Masker:
    """Draw masks ``(rows, genes)``, True where a gene is hidden.

    Parameters
    ----------
    n_genes
        Number of genes.
    strategy
        ``"random"``: every gene on its own. ``"programme"``: genes of a programme together, so that they cannot
        be copied from their partners. ``"mixed"``: each row one or the other.
    rate
        Expected share of hidden genes.
    programmes
        Boolean membership ``(programmes, genes)``. Genes of none are hidden at random.
    """

    def __init__(self, n_genes: int, strategy: str, rate: float, programmes: np.ndarray | None = None) -> None:
        require_choice(strategy, MASKINGS, argument="masking")
        require_number(rate, argument="mask_rate", above=0, below=1)
        if strategy != "random" and programmes is None:
            msg = f"`masking={strategy!r}` needs programmes."
            raise ValueError(msg)
        self.n_genes, self.strategy, self.rate = n_genes, strategy, rate
        if strategy != "random":
            self._members = torch.from_numpy(np.asarray(programmes, dtype=np.float32))
            self._alone = self._members.sum(dim=0) == 0
            self._programme_rate = programme_rate(programmes, rate)

    @property
    def identity(self) -> str:
        """Text that differs where masks do."""
        members = b"" if self.strategy == "random" else self._members.cpu().numpy().tobytes()
        return f"{self.strategy} {self.rate} {crc32(members):08x}"

    def to(self, device: str) -> Masker:
        """Move to a device."""
        if self.strategy != "random":
            self._members, self._alone = self._members.to(device), self._alone.to(device)
        return self

    def draw(self, n_rows: int, generator: torch.Generator) -> Tensor:
        """Return a new mask ``(n_rows, n_genes)`` on the generator's device."""
        if self.strategy == "random":
            return self._random(n_rows, self.n_genes, generator)
        chosen = bernoulli(n_rows, len(self._members), self._programme_rate, generator)
        mask = (chosen.float() @ self._members) > 0
        if self._alone.any():
            mask |= self._alone & self._random(n_rows, self.n_genes, generator)
        if self.strategy == "mixed":
            mask = torch.where(
                bernoulli(n_rows, 1, 0.5, generator), mask, self._random(n_rows, self.n_genes, generator)
            )
        return mask

    def _random(self, n_rows: int, n_columns: int, generator: torch.Generator) -> Tensor:
        return bernoulli(n_rows, n_columns, self.rate, generator)


def bernoulli(
    n_rows: int,
    n_columns: int,
    rate: float,
    generator: torch.Generator | None,
    device: torch.device | None = None,
) -> Tensor:
    """Return a boolean ``(n_rows, n_columns)`` of independent draws, the rate rounded to 1 / 65,536.

    Without a generator, torch's own of ``device`` is used.
    """
    n = n_rows * n_columns
    device = device if generator is None else generator.device
    words = torch.empty((n + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:n].view(n_rows, n_columns) < round(rate * LEVELS) - LEVELS // 2


def programme_rate(programmes: np.ndarray, rate: float) -> float:
    """Return how often each programme must be hidden for its genes to be hidden at ``rate`` on average.

    A gene of several programmes is hidden with any of them, so the more they overlap, the rarer each must be.
    """
    sizes = np.asarray(programmes, dtype=bool).sum(axis=0)
    sizes = sizes[sizes > 0]
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 - (1 - middle) ** sizes) < rate else (low, middle)
    return (low + high) / 2


def read_programmes(
    source: str | os.PathLike[str] | Mapping[str, Sequence[str]], genes: Sequence[str]
) -> dict[str, list[str]]:
    """Return the programmes that have at least three of ``genes``, each cut to these.

    Parameters
    ----------
    source
        A GMT file (a programme a line: name, description, genes, separated by tabs), or ``{name: genes}``.
    genes
        Names of the genes in use.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A line has no genes, a name repeats, or no programme has enough known genes.
    """
    named = named_programmes(source)
    known = set(genes)
    kept = {name: [g for g in dict.fromkeys(members) if g in known] for name, members in named.items()}
    kept = {name: members for name, members in kept.items() if len(members) >= MIN_GENES}
    if not kept:
        first = next(iter(named.values()), [])
        msg = (
            f"None of the {len(named)} programmes has {MIN_GENES} or more of the {len(known)} genes in use. "
            f"Programmes: {listing(list(first), 3)}; table: {listing(list(genes), 3)}. Are gene names of the same kind?"
        )
        raise ValueError(msg)
    return kept


def named_programmes(source: str | os.PathLike[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return all programmes of a GMT file or a mapping as ``{name: genes}``."""
    if isinstance(source, Mapping):
        alone = [name for name, members in source.items() if isinstance(members, str)]
        if alone:
            msg = f"`programmes[{alone[0]!r}]` is one string; give a list of gene names."
            raise TypeError(msg)
        return {str(name): list(members) for name, members in source.items()}
    return _read_gmt(Path(source))


def _read_gmt(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        msg = f"`programmes`: there is no file {str(path)!r}."
        raise FileNotFoundError(msg)
    found: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        members = [gene.strip() for gene in rest[1:] if gene.strip()]
        if not members or name in found:
            fault = "repeats a name" if name in found else "has no genes (name, description, genes, separated by tabs)"
            msg = f"{str(path)!r} is not a GMT file: line {number} ({name[:40]!r}) {fault}."
            raise ValueError(msg)
        found[name] = members
    return found


def membership(programmes: Mapping[str, Sequence[str]], genes: Sequence[str]) -> np.ndarray:
    """Return a boolean ``(programmes, genes)``."""
    at = {gene: i for i, gene in enumerate(genes)}
    out = np.zeros((len(programmes), len(at)), dtype=bool)
    for row, members in zip(out, programmes.values(), strict=True):
        row[[at[gene] for gene in members]] = True
    return out


def learn_programmes(X: np.ndarray, genes: Sequence[str], n_programmes: int, seed: int) -> dict[str, list[str]]:
    """Return groups of genes that rise and fall together: k-means of their directions among the spots.

    Parameters
    ----------
    X
        Centred log values ``(rows, genes)``.
    genes
        Names of the genes.
    n_programmes
        Number of groups.
    seed
        Seed.

    Notes
    -----
    Genes are compared by their correlation within the leading principal components, where noise that is a gene's
    own has no part.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from threadpoolctl import threadpool_limits

    n_components = max(1, min(30, *(side - 1 for side in X.shape)))
    with threadpool_limits(1):  # sums in a fixed order: the same seed gives the same groups
        profiles = TruncatedSVD(n_components, random_state=seed).fit(X).components_.T
        profiles = profiles * np.linalg.norm(X @ profiles, axis=0)
        profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-12)
        group = KMeans(min(n_programmes, len(profiles)), n_init=3, random_state=seed).fit_predict(profiles)
    return {
        f"programme_{k + 1}": [gene for gene, g in zip(genes, group, strict=True) if g == k] for k in np.unique(group)
    }
