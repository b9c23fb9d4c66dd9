"""The masked-gene autoencoder that a user holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from histoweave import _keys
from histoweave._device import resolve_device, resolve_precision
from histoweave._random import child_seeds, torch_seed
from histoweave._resolve import get_table
from histoweave._validate import require_choice, require_number
from histoweave.models._base import Arrays, prefixed, require_fitted, subset
from histoweave.models.gene_autoencoder._apply import Applied
from histoweave.models.gene_autoencoder._data import (
    LOADINGS,
    Rows,
    canonical_order,
    variable_genes,
)
from histoweave.models.gene_autoencoder._losses import LIKELIHOODS
from histoweave.models.gene_autoencoder._masking import (
    MASKINGS,
    Masker,
    learn_programmes,
    membership,
    read_programmes,
)
from histoweave.models.gene_autoencoder._module import GeneNetwork
from histoweave.pp._expression import raw_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

STEPS = 3000  # training steps by default, within the epochs below
EPOCHS = (20, 300)
GENES_PER_PROGRAMME = 40
PROGRAMME_ROWS = 5000  # rows that programmes are learned from
ARGUMENTS = (
    "n_latent", "likelihood", "masking", "mask_rate", "programmes", "n_programmes", "widths", "dropout", "centre",
    "n_top_genes", "target_sum", "min_share", "batch_size", "max_epochs", "learning_rate", "weight_decay",
    "validation_fraction", "patience", "loading", "device", "precision", "random_state",
)  # fmt: skip


class GeneAutoencoder(Applied):
    """Embed counts by a network that was trained to predict hidden genes from the visible ones.

    Parameters
    ----------
    n_latent
        Dimensions of the embedding.
    likelihood
        ``"mse"``: squared error of log-normalised values. ``"nb"``, ``"zinb"``: (zero-inflated) negative
        binomial counts, given the depth of the spot.
    masking
        What is hidden in a training step: ``"random"`` genes, whole ``"programme"`` s, or ``"mixed"``.
    mask_rate
        Expected share of hidden genes.
    programmes
        A GMT file or ``{name: genes}`` for the latter two. Default: programmes learned by co-expression.
    n_programmes
        Number of learned programmes. Default: one for 40 genes.
    widths
        Hidden layers of the encoder; the decoder has them in reverse.
    dropout
        Share of hidden units dropped in training.
    centre
        Centre every gene within each section, which removes what differs between sections as a whole.
    n_top_genes
        Variable genes to choose in ``fit``, where the table does not mark them (``var["highly_variable"]``).
    target_sum
        Depth every row is brought to before the logarithm. Default: the median depth in ``fit``; at much more
        than that, the logarithm makes single counts loud.
    min_share
        Least share of the model's genes that a new table must have.
    batch_size
        Rows a training step.
    max_epochs
        Epochs. Default: about 3,000 steps, within 20 to 300 epochs.
    learning_rate, weight_decay
        Of AdamW.
    validation_fraction
        Share of the rows that are held out to choose the best epoch, 0 for none.
    patience
        Epochs without a better held-out loss after which training stops; ``None`` to go on.
    loading
        ``"dense"``: the whole matrix on the device. ``"sparse"``: one dense batch at a time. ``"auto"``: dense
        where it fits.
    device, precision
        As :data:`histoweave.settings`. Embeddings are always computed in float32.
    random_state
        Seed.

    Attributes
    ----------
    genes
        Names of the genes used.
    sections_seen
        Sections whose counts were seen in ``fit``.
    history
        Loss of every epoch (a DataFrame): ``epoch``, ``train_loss``, ``validation_loss``.
    programmes_used
        Genes of every programme that was masked, empty for ``masking="random"``.

    Notes
    -----
    After the masked autoencoders of Richter et al. (2025, Nature Machine Intelligence 7:68): what the first layer
    sums over the visible genes is rescaled to all genes, and the loss counts hidden genes only. So a gene that a
    new table lacks is hidden, not 0. The section is told to the decoder alone. Rows are trained on in an order
    that does not depend on that of the table. Rows without counts are NaN.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> model = hw.models.GeneAutoencoder(n_latent=16, max_epochs=5).fit(adata)
    >>> model.embed(adata).shape
    (400, 16)
    """

    def __init__(
        self,
        n_latent: int = 64,
        *,
        likelihood: str = "mse",
        masking: str = "random",
        mask_rate: float = 0.5,
        programmes: str | os.PathLike[str] | Mapping[str, Sequence[str]] | None = None,
        n_programmes: int | None = None,
        widths: Sequence[int] = (256, 128),
        dropout: float = 0.3,
        centre: bool = True,
        n_top_genes: int = 2000,
        target_sum: float | None = None,
        min_share: float = 0.3,
        batch_size: int = 128,
        max_epochs: int | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        validation_fraction: float = 0.1,
        patience: int | None = 30,
        loading: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        random_state: int = 0,
    ) -> None:
        require_choice(likelihood, LIKELIHOODS, argument="likelihood")
        require_choice(masking, MASKINGS, argument="masking")
        require_choice(loading, LOADINGS, argument="loading")
        require_number(mask_rate, argument="mask_rate", above=0, below=1)
        require_number(dropout, argument="dropout", at_least=0, below=1)
        require_number(validation_fraction, argument="validation_fraction", at_least=0, below=0.9)
        require_number(min_share, argument="min_share", above=0, at_most=1)
        require_number(weight_decay, argument="weight_decay", at_least=0)
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        for name, value in (("target_sum", target_sum), ("learning_rate", learning_rate)):
            if value is not None or name != "target_sum":
                require_number(value, argument=name, above=0)
        whole = {"n_latent": n_latent, "n_top_genes": n_top_genes, "batch_size": batch_size}
        whole |= {"n_programmes": n_programmes, "max_epochs": max_epochs, "patience": patience}
        for name, value in whole.items():
            if value is not None or name in ("n_latent", "n_top_genes", "batch_size"):
                require_number(value, argument=name, at_least=1, integer=True)
        for width in widths:
            require_number(width, argument="widths", at_least=1, integer=True)
        if not len(widths):
            msg = "`widths` is empty; name one hidden layer or more."
            raise ValueError(msg)
        if masking == "random" and (programmes is not None or n_programmes is not None):
            msg = "Programmes are not used with `masking='random'`. Pass `masking='programme'` or 'mixed'."
            raise ValueError(msg)
        self.n_latent, self.likelihood, self.masking, self.mask_rate = n_latent, likelihood, masking, mask_rate
        self.programmes, self.n_programmes = programmes, n_programmes
        self.widths, self.dropout, self.centre = [int(w) for w in widths], dropout, bool(centre)
        self.n_top_genes, self.target_sum, self.min_share = n_top_genes, target_sum, min_share
        self.batch_size, self.max_epochs, self.learning_rate = batch_size, max_epochs, learning_rate
        self.weight_decay, self.validation_fraction, self.patience = weight_decay, validation_fraction, patience
        self.loading, self.device, self.precision, self.random_state = loading, device, precision, random_state
        self.genes: list[str] | None = None

    def fit(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> Self:
        """Choose genes and learn to predict hidden ones from a table of raw counts, without labels.

        Parameters
        ----------
        data
            AnnData or SpatialData object.
        layer
            Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
        library_key
            Column of ``obs`` that names the section.
        table_key
            Table of a SpatialData object.

        Returns
        -------
        The fitted encoder.

        Raises
        ------
        ValueError
            The values are not raw counts, no gene varies, fewer than 2 rows have counts, or no programme has
            genes of the table.
        """
        from histoweave.models.gene_autoencoder._training import train  # Lightning takes seconds to import

        self.genes = None  # not fitted again until all is done
        table = get_table(data, table_key)
        table = table[canonical_order(table, library_key)]
        counts = raw_counts(table, layer)[0]
        genes = variable_genes(table, counts, self.n_top_genes, library_key)
        depth = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        if (depth > 0).sum() < 2:
            msg = f"At least 2 rows with counts are needed, found {(depth > 0).sum()} of {table.n_obs}."
            raise ValueError(msg)
        self._target = float(self.target_sum or np.median(depth[depth > 0]))
        device = resolve_device(self.device)
        rows = Rows(table, genes, layer=layer, library_key=library_key, target_sum=self._target, centre=self.centre)
        rows.to(device, loading=self.loading, counts=self.likelihood != "mse")
        init_seed, train_seed, programme_seed = child_seeds(self.random_state, 3)
        self.programmes_used = self._choose_programmes(rows, genes, programme_seed)
        masker = Masker(
            len(genes), self.masking, self.mask_rate, membership(self.programmes_used, genes) if self.programmes_used
            else None,
        ).to(device)  # fmt: skip
        with torch_seed(init_seed):
            network = self._network(len(genes), len(rows.rows_of)).to(device)
        _start_at_mean(network, rows)
        n_steps = max(1, -(-int(rows.usable.sum()) // self.batch_size))
        epochs = train(
            network, masker, rows,
            validation_fraction=self.validation_fraction,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs or int(np.clip(STEPS // n_steps, *EPOCHS)),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            patience=self.patience,
            precision=resolve_precision(self.precision, device),
            seed=train_seed,
        )  # fmt: skip
        self.history = pd.DataFrame(epochs)
        self.sections_seen, self._mean, self._net = list(rows.rows_of), rows.mean, network.requires_grad_(False)
        self.genes = genes
        return self

    def _network(self, n_genes: int, n_sections: int) -> GeneNetwork:
        return GeneNetwork(
            n_genes, n_sections, likelihood=self.likelihood, widths=self.widths, n_latent=self.n_latent,
            dropout=self.dropout,
        )  # fmt: skip

    def _choose_programmes(self, rows: Rows, genes: list[str], seed: int) -> dict[str, list[str]]:
        if self.masking == "random":
            return {}
        if self.programmes is not None:
            return read_programmes(self.programmes, genes)
        usable = np.flatnonzero(rows.usable)
        if len(usable) > PROGRAMME_ROWS:
            usable = np.sort(np.random.default_rng(seed).choice(usable, PROGRAMME_ROWS, replace=False))
        values = rows.log_batch(torch.from_numpy(usable).to(rows.device)).cpu().numpy()
        return learn_programmes(values, genes, self.n_programmes or max(2, len(genes) // GENES_PER_PROGRAMME), seed)

    def fit_embed(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Fit and return the embedding of the same table.

        Parameters
        ----------
        data, layer, library_key, table_key
            As for :meth:`fit`.

        Returns
        -------
        The embedding ``(n_obs, n_latent)`` float32; rows without counts are NaN.
        """
        keys = {"layer": layer, "library_key": library_key, "table_key": table_key}
        return self.fit(data, **keys).embed(data, **keys)

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "genes")
        config = {name: getattr(self, name) for name in ARGUMENTS}
        if isinstance(self.programmes, Mapping):
            config["programmes"] = {str(k): list(v) for k, v in self.programmes.items()}
        config |= {"genes": self.genes, "sections_seen": self.sections_seen, "programmes_used": self.programmes_used}
        config["target"] = self._target
        config["history"] = self.history.to_dict("records")
        weights = {name: value.cpu().numpy() for name, value in self._net.state_dict().items()}
        return config, {"mean": self._mean} | prefixed("network", weights)

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        model = cls(**{name: config[name] for name in ARGUMENTS})
        for name in ("sections_seen", "programmes_used"):
            setattr(model, name, config[name])
        model._target = config["target"]
        model.history, model._mean = pd.DataFrame(config["history"]), arrays["mean"]
        model._net = model._network(len(config["genes"]), len(model.sections_seen))
        model._net.load_state_dict({k: torch.from_numpy(v) for k, v in subset("network", arrays).items()})
        model._net.requires_grad_(False).eval()
        model.genes = config["genes"]
        return model

    def _card(self) -> list[str]:
        last = self.history.iloc[-1]
        scores = ", ".join(f"{name.replace('_', ' ')} {last[name]:.4g}" for name in self.history.columns[1:])
        return [
            f"- genes: {len(self.genes)}, embedding of {self.n_latent} dimensions",
            f"- trained to predict hidden genes ({self.masking}, {self.mask_rate:.0%}), likelihood {self.likelihood}",
            f"- epochs: {len(self.history)}; last: {scores}",
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]


def _start_at_mean(network: GeneNetwork, rows: Rows) -> None:
    """Let the network start close to the genes' means instead of having to learn them first."""
    with torch.no_grad():
        network.last.weight.mul_(0.1)
        if network.likelihood == "mse":
            return  # centred values have mean 0
        counts = rows.counts[np.flatnonzero(rows.usable)]
        total = np.asarray(counts.sum(axis=0, dtype=np.float64)).ravel()
        depth = float(rows.depth[torch.from_numpy(rows.usable)].sum(dtype=torch.float64))
        share = np.append(np.maximum(total, 0.5), max(depth - total.sum(), 0.5)) / depth
        network.last.bias.copy_(torch.from_numpy(np.log(share)))
