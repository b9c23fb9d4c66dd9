"""What a gene classifier sees of a table: each spot's centred log values, and the mean of its neighbours'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from histoweave._device import resolve_device
from histoweave.models.gene_autoencoder._apply import Applied
from histoweave.models.gene_autoencoder._base import GeneEncoder
from histoweave.models.gene_autoencoder._data import Expression, Rows


class Views:
    """Batches ``(n, views, genes)`` of a table: the spot itself, then the mean of each ring of neighbours.

    Parameters
    ----------
    encoder
        The fitted encoder, which says how values are normalised.
    expression
        The table, aligned with the encoder's genes.
    rings
        Boolean adjacency of each ring ``(n, n)``. A spot without measured neighbours stands for itself.

    Attributes
    ----------
    rows
        Row numbers of the spots with counts.
    present
        Mask of the genes the table has, on the device.
    """

    def __init__(self, encoder: GeneEncoder, expression: Expression, rings: Sequence[sp.csr_matrix]) -> None:
        if isinstance(encoder, Applied):
            self._values, device = encoder._rows(expression), resolve_device(encoder.device)
            encoder._net.to(device)  # it predicts the genes that the table lacks
        else:
            device = "cpu"
            self._values = Rows(expression, target_sum=encoder._target, centre=True, mean=encoder._scaler.mean)
            self._values.to(device, loading="sparse", counts=False)
        self.usable, self.rows = expression.usable, np.flatnonzero(expression.usable)
        self.present = torch.from_numpy(expression.present).to(device)
        self._rings = [self._mean_of(ring) for ring in rings]
        self.device, self.n_views = device, 1 + len(rings)

    def _mean_of(self, ring: sp.csr_matrix) -> sp.csr_matrix:
        """Weights that average the measured neighbours."""
        weights = ring.astype(np.float32) @ sp.diags(self.usable.astype(np.float32))
        count = np.asarray(weights.sum(axis=1)).ravel()
        return (sp.diags(1 / np.maximum(count, 1)) @ weights + sp.diags((count == 0).astype(np.float32))).tocsr()

    def around(self, rows: np.ndarray) -> Tensor | None:
        """Return the mean of the spots' neighbours where the encoder is shown it, else ``None``."""
        return self._values.around_batch(torch.from_numpy(rows).to(self.device))

    def batch(self, rows: np.ndarray) -> Tensor:
        """Return centred log values, 0 for genes that the table lacks."""
        own = self._values.log_batch(torch.from_numpy(rows).to(self.device))
        views = [own]
        for weights in self._rings:
            around = torch.from_numpy((weights[rows] @ self._values.log).toarray()).to(own)
            views.append(around - self._values._means[self._values._section[rows]])
        return torch.stack(views, dim=1)
