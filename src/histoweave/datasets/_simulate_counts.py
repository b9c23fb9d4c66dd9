"""Draw counts: negative binomial around programme profiles, with depth, dropout and batch effects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

DEPTH_SD = 0.4  # of log depth between the spots of a section
DONOR_SHARE = 0.7  # share of the batch variance that sections of one donor have in common
CHUNK = 2_000


@dataclass(frozen=True)
class Programmes:
    """Genes of all sections of one call.

    Attributes
    ----------
    log_mean
        Log expression without any programme, ``(n_genes,)``.
    effect
        Log fold change of a marker at full signal, 0 for others, ``(n_programmes, n_genes)``.
    marker_of
        Programme of each gene, -1 where it is no marker, ``(n_genes,)``.
    """

    log_mean: np.ndarray
    effect: np.ndarray
    marker_of: np.ndarray


def draw_programmes(rng: np.random.Generator, n_programmes: int, n_genes: int, n_markers: int) -> Programmes:
    """Draw the genes. Marker sets of all programmes have the same means and effects.

    A programme then changes neither the total nor, after normalising by it, any gene but its markers.
    """
    log_mean = rng.normal(0, 1, n_genes)
    marker_of = np.full(n_genes, -1)
    effect = np.zeros((n_programmes, n_genes))
    genes = rng.permutation(n_genes)[: n_programmes * n_markers].reshape(n_programmes, n_markers)
    means, effects = rng.normal(0.2, 0.7, n_markers), rng.uniform(0.7, 1.5, n_markers)
    for k in range(n_programmes):
        log_mean[genes[k]] = means
        effect[k, genes[k]] = effects
        marker_of[genes[k]] = k
    return Programmes(log_mean, effect, marker_of)


def draw_batch(rng: np.random.Generator, n_genes: int) -> np.ndarray:
    """Draw the unit-variance batch effect of a donor or a section: one value a gene and one for the depth."""
    return rng.normal(0, 1, n_genes + 1)


def join_batch(donor: np.ndarray, section: np.ndarray, batch_effect: float) -> np.ndarray:
    """Combine what a donor's sections share with a section's own; the sd is ``batch_effect``."""
    return batch_effect * (math.sqrt(DONOR_SHARE) * donor + math.sqrt(1 - DONOR_SHARE) * section)


def profiles(programmes: Programmes, gene_signal: float, batch: np.ndarray) -> np.ndarray:
    """Expected share of each gene in each programme, ``(n_programmes, n_genes)``, rows summing to 1."""
    log_mean = programmes.log_mean + gene_signal * programmes.effect + batch[:-1]
    means = np.exp(log_mean - log_mean.max())
    return means / means.sum(axis=1, keepdims=True)


def draw_counts(
    rng: np.random.Generator,
    shares: np.ndarray,
    programme: np.ndarray,
    *,
    depth: float,
    dispersion: float,
    dropout: float,
) -> sp.csr_matrix:
    """Draw counts ``(n_spots, n_genes)`` as float32 CSR, given the genes' shares and each spot's programme.

    The mean is ``depth_i * shares[programme_i]`` with log-normal ``depth_i`` of mean ``depth``, the variance
    given the mean ``mean + dispersion * mean ** 2``; each count is then lost with probability ``dropout``.
    """
    n_spots = len(programme)
    spot_depth = depth * np.exp(rng.normal(0, DEPTH_SD, n_spots) - DEPTH_SD**2 / 2)
    parts = []
    for start in range(0, n_spots, CHUNK):
        rows = slice(start, start + CHUNK)
        mean = spot_depth[rows, None] * shares[programme[rows]]
        if dispersion > 0:
            mean *= dispersion * rng.standard_gamma(1 / dispersion, mean.shape)
        counts = rng.poisson(mean)
        if dropout > 0:
            counts[rng.random(counts.shape) < dropout] = 0
        parts.append(sp.csr_matrix(counts.astype(np.float32)))
    return sp.vstack(parts, format="csr")
