"""What a trained masked autoencoder does with a table: embed it, predict its genes, say how well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from histoweave import _keys
from histoweave._device import resolve_device
from histoweave._random import torch_generator
from histoweave._resolve import get_table
from histoweave._validate import listing, require_number
from histoweave.models._base import require_fitted
from histoweave.models.gene_autoencoder._base import GeneEncoder
from histoweave.models.gene_autoencoder._data import Expression, Rows, section_indices
from histoweave.models.gene_autoencoder._imputation import imputation_scores
from histoweave.models.gene_autoencoder._masking import Masker

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

HIDDEN_GROUPS = 5  # in imputation each gene is hidden together with a fifth of the others
BATCH = 2048  # rows at a time without gradients


def gene_list(genes: Sequence[str] | str | None) -> list[str] | None:
    """Return names of genes as a list, ``None`` where none are asked for."""
    return genes if genes is None else [genes] if isinstance(genes, str) else [str(gene) for gene in genes]


class Applied(GeneEncoder):
    """The half of :class:`GeneAutoencoder` that needs no training."""

    _without = "; they are estimated from the others, or with a likelihood of counts taken to be at their mean."

    def embed(
        self,
        data: AnnData | SpatialData,
        *,
        n_masks: int = 0,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Return the embedding ``(n_obs, n_latent)`` float32; rows without counts are NaN.

        Parameters
        ----------
        data
            As for :meth:`fit`.
        n_masks
            Average the embeddings under this many random masks, as in training; 0 shows all genes once. The
            masks are the same at every call and for every row.
        layer, library_key, table_key
            As for :meth:`fit`.

        Raises
        ------
        ValueError
            The table has less than ``min_share`` of the genes, or its values are not raw counts.
        """
        require_number(n_masks, argument="n_masks", at_least=0, integer=True)
        return self._embed(self._aligned(get_table(data, table_key), layer, library_key), n_masks)

    def _embed(self, expression: Expression, n_masks: int = 0) -> np.ndarray:
        rows = self._rows(expression)
        present = torch.from_numpy(rows.present).to(rows.device)
        hidden = torch.zeros((1, len(self.genes)), dtype=torch.bool)
        if n_masks:
            masker = Masker(len(self.genes), "random", self.mask_rate)
            hidden = masker.draw(n_masks, torch_generator(self.random_state))
        hidden = hidden.to(rows.device)
        out = np.full((len(rows.usable), self.n_latent), np.nan, dtype=np.float32)
        for part, x, around in self._batches(rows):
            out[part] = self._embed_batch(x, present, around, hidden)
        return out

    @torch.inference_mode()
    def _embed_batch(
        self, x: torch.Tensor, present: torch.Tensor, around: torch.Tensor | None, hidden: torch.Tensor
    ) -> np.ndarray:
        """Return the embedding ``(n, n_latent)`` of centred log values, the mean over what is hidden.

        Parameters
        ----------
        x
            Centred log values ``(n, genes)``.
        present
            Mask of the genes that the table has.
        around
            The same of the rows' neighbours, where the network is shown them.
        hidden
            Masks ``(n_masks, genes)`` of the genes to hide, each in a pass of its own.
        """
        x = self._net.complete(x, present, around)
        total = sum(self._net.hide(x, row[None], around, row[None]) for row in hidden)
        return (total / len(hidden)).cpu().numpy()

    def impute(
        self,
        data: AnnData | SpatialData,
        *,
        genes: Sequence[str] | None = None,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Predict genes from the others; no value is predicted from itself.

        Parameters
        ----------
        data
            As for :meth:`fit`.
        genes
            Genes of the model to predict, all hidden at once; the table need not have them. Default: all of the
            model's, hidden a fifth at a time.
        layer, library_key, table_key
            As for :meth:`fit`.

        Returns
        -------
        Log-normalised expression (``log(1 + expected share * target_sum)``), rows by genes; rows without counts
        are NaN. Where genes are centred, a gene that the table lacks varies around its mean in training.

        Raises
        ------
        KeyError
            A gene is not one of the model's.
        ValueError
            As for :meth:`embed`, or too few genes are left to predict from.
        """
        require_fitted(self, "genes")
        table = get_table(data, table_key)
        genes = gene_list(genes)
        number = {gene: i for i, gene in enumerate(self.genes)}
        unknown = [gene for gene in genes or [] if gene not in number]
        if unknown:
            msg = f"`genes`: {listing(unknown, 5)} are not among the model's {len(number)} genes."
            raise KeyError(msg)
        if genes is not None:
            groups = [np.array([number[gene] for gene in genes], dtype=int)]
        else:
            order = np.random.default_rng(self.random_state).permutation(len(number))
            groups = np.array_split(order, min(HIDDEN_GROUPS, len(order)))
        rows = self._rows(self._aligned(table, layer, library_key))
        out = np.full((table.n_obs, len(number)), np.nan, dtype=np.float32)
        section = torch.from_numpy(section_indices(rows.rows_of, self.sections_seen, table.n_obs)).to(rows.device)
        means = np.where(rows.present, rows.means, self._mean)
        for group in groups:
            shown = rows.present.copy()
            shown[group] = False
            if not shown.any():
                msg = "`genes` are all the genes that the table shares with the model: none is left to predict from."
                raise ValueError(msg)
            visible = torch.from_numpy(shown).to(rows.device)
            for part, x, around in self._batches(rows):
                z = self._net.hide(x, ~visible[None], around, ~visible[None])
                found = self._net.decode(z, section[part])
                out[np.ix_(part, group)] = self._log_values(found, means[rows.section_number[part]])[:, group]
        wanted = list(self.genes) if genes is None else genes
        return pd.DataFrame(out[:, [number[g] for g in wanted]], index=table.obs_names, columns=wanted)

    def _log_values(self, found: dict[str, torch.Tensor], means: np.ndarray) -> np.ndarray:
        if self.likelihood == "mse":
            return np.maximum(found["value"].cpu().numpy() + means, 0)
        share = found["share"]
        if self.likelihood == "zinb":
            share = share * torch.sigmoid(-found["logits"])
        return torch.log1p(share * self._target).cpu().numpy()

    def score_imputation(
        self,
        data: AnnData | SpatialData,
        *,
        predicted: pd.DataFrame | None = None,
        n_rings: int = 1,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Score predictions of hidden genes against two nulls, gene by gene, section by section.

        Parameters
        ----------
        data
            AnnData or SpatialData object with coordinates or array positions.
        predicted
            What :meth:`impute` returned for the same data; its genes are scored. By default it is asked here, for all.
        n_rings
            Rings of neighbours that the second null averages.
        layer, library_key
            As for :meth:`fit`.
        spatial_key
            ``obsm`` key of the coordinates.
        table_key
            Table of a SpatialData object.

        Returns
        -------
        A DataFrame with ``section``, ``gene``, ``method``, ``pearson``, ``spearman`` and ``rmse`` on log values.
        Methods: ``"model"`` (each gene predicted from the others of its spot), ``"gene mean"`` (over the spots
        of the section) and ``"neighbour mean"`` (the gene's own values around the spot). Correlations of
        a constant are NaN. Genes that the table lacks cannot be scored and are left out.

        Raises
        ------
        ValueError
            As for :meth:`impute`; or ``predicted`` is of other rows or genes.
        """
        require_fitted(self, "genes")
        table = get_table(data, table_key)
        if predicted is None:
            predicted = self.impute(table, layer=layer, library_key=library_key)
        elif not (predicted.index.equals(table.obs_names) and set(predicted.columns) <= set(self.genes)):
            msg = "`predicted` has not the rows of `data`, or other genes. Pass what `impute(data)` returns."
            raise ValueError(msg)
        rows = self._rows(self._aligned(table, layer, library_key, quiet=True))
        scored = np.isin(self.genes, predicted.columns) & rows.present
        return imputation_scores(
            table, rows, predicted[np.asarray(self.genes)[scored]].to_numpy(), scored, np.asarray(self.genes)[scored],
            n_rings=n_rings, library_key=library_key, spatial_key=spatial_key,
        )  # fmt: skip

    def _rows(self, expression: Expression) -> Rows:
        rows = Rows(
            expression, target_sum=self._target, centre=self.centre, mean=self._mean, neighbours=self.neighbours
        )  # fmt: skip
        return rows.to(resolve_device(self.device), loading="sparse", counts=False)

    def _batches(self, rows: Rows) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor | None]]:
        """Yield ``(row numbers, log values, those around)`` of the rows with counts, on the network's device."""
        self._net.to(rows.device)
        usable = np.flatnonzero(rows.usable)
        for start in range(0, len(usable), BATCH):
            part = usable[start : start + BATCH]
            number = torch.from_numpy(part).to(rows.device)
            yield part, rows.log_batch(number), rows.around_batch(number)
