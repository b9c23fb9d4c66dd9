"""The masked-gene autoencoder that a user holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from histoweave._device import resolve_device, resolve_precision
from histoweave._random import child_seeds, torch_seed
from histoweave._validate import require_choice, require_number, warn
from histoweave.models._base import Arrays, prefixed, subset
from histoweave.models.gene_autoencoder._apply import Applied
from histoweave.models.gene_autoencoder._correction import CORRECTIONS
from histoweave.models.gene_autoencoder._data import LOADINGS, Expression, Rows
from histoweave.models.gene_autoencoder._losses import LIKELIHOODS
from histoweave.models.gene_autoencoder._masking import (
    MASKINGS,
    Masker,
    learn_programmes,
    membership,
    read_programmes,
)
from histoweave.models.gene_autoencoder._module import GeneNetwork
from histoweave.models.gene_autoencoder._start import start_at_components, start_at_mean

if TYPE_CHECKING:
    from anndata import AnnData

STEPS = 3000  # training steps by default, within the epochs below
EPOCHS = (20, 300)
GENES_PER_PROGRAMME = 40
PROGRAMME_ROWS = 5000  # rows that programmes are learned from


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
    neighbours
        Show the encoder the mean of the spots beside as well (ring 1, see :func:`histoweave.pp.spatial_context`), of
        which genes are hidden at the same rate. Tables then need positions.
    batch_correction
        ``"mmd"`` makes the embedding forget the section: the maximum mean discrepancy between sections (Gretton et
        al., 2012, JMLR 13:723) is added to the loss. It needs two sections. What truly differs between them is
        forgotten as well; ``validation_fraction`` then no longer chooses the epoch.
    correction_weight
        Weight of that term; it rises over the first half of the epochs.
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
    checkpoint
        File that the state of the training is kept in after every epoch, and from which an interrupted ``fit``
        continues to the same weights. It is removed when the training is complete.
    device, precision
        As :data:`histoweave.settings`. Embeddings are always computed in float32.
    devices, strategy, num_nodes
        More than one device or machine, as for :class:`lightning.pytorch.Trainer`; they share every batch.
        ``strategy="ddp"`` runs the script in every process; ``"ddp_spawn"`` and ``"ddp_fork"`` return the weights,
        but no ``history``.
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
    sums over the visible genes is rescaled to all genes, and the loss counts hidden genes only. Genes that a new
    table lacks are predicted from the others before it is embedded; with a likelihood of counts they are taken to
    be at their mean. The section is told to the decoder alone. The embedding starts as principal components
    (whitened), so that few spots do not have to find them again. Rows are trained on in an order
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
        neighbours: bool = False,
        batch_correction: str | None = None,
        correction_weight: float = 10.0,
        widths: Sequence[int] = (128, 128),
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
        checkpoint: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        devices: int = 1,
        strategy: str = "auto",
        num_nodes: int = 1,
        random_state: int = 0,
    ) -> None:
        require_choice(likelihood, LIKELIHOODS, argument="likelihood")
        require_choice(masking, MASKINGS, argument="masking")
        require_choice(loading, LOADINGS, argument="loading")
        require_choice(batch_correction, (None, *CORRECTIONS), argument="batch_correction")
        for width in widths:
            require_number(width, argument="widths", at_least=1, integer=True)
        if not len(widths):
            msg = "`widths` is empty; name one hidden layer or more."
            raise ValueError(msg)
        if masking == "random" and (programmes is not None or n_programmes is not None):
            msg = "Programmes are not used with `masking='random'`. Pass `masking='programme'` or 'mixed'."
            raise ValueError(msg)
        widths, centre = [int(width) for width in widths], bool(centre)
        if isinstance(programmes, Mapping):
            programmes = {str(name): list(genes) for name, genes in programmes.items()}
        self._set_arguments(locals())

    def _learn(self, expression: Expression, table: AnnData, labels_key: str) -> None:
        from histoweave.models.gene_autoencoder._training import Training, train  # Lightning takes seconds to import

        self._target = float(self.target_sum or expression.median_depth())
        device = resolve_device(self.device)
        if self.batch_correction and len(expression.rows_of) < 2:
            warn("`batch_correction` needs two sections or more; the table is one section, so it is left out.")
        rows = Rows(expression, target_sum=self._target, centre=self.centre, neighbours=self.neighbours)
        rows.to(device, loading=self.loading, counts=self.likelihood != "mse")
        genes = expression.genes
        init_seed, train_seed, programme_seed, start_seed = child_seeds(self.random_state, 4)
        self.programmes_used = self._choose_programmes(rows, genes, programme_seed)
        masker = Masker(
            len(genes), self.masking, self.mask_rate, membership(self.programmes_used, genes) if self.programmes_used
            else None,
        ).to(device)  # fmt: skip
        with torch_seed(init_seed):
            network = self._network(len(genes), len(rows.rows_of)).to(device)
        start_at_mean(network, rows)
        start_at_components(network, rows, start_seed)
        n_steps = max(1, -(-int(rows.usable.sum()) // self.batch_size))
        plan = Training(
            max_epochs=self.max_epochs or int(np.clip(STEPS // n_steps, *EPOCHS)),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            validation_fraction=self.validation_fraction,
            patience=self.patience,
            batch_correction=self.batch_correction,
            correction_weight=self.correction_weight,
            precision=resolve_precision(self.precision, device),
            seed=train_seed,
        )
        machines = {"devices": self.devices, "strategy": self.strategy, "num_nodes": self.num_nodes}
        epochs = train(network, masker, rows, plan, checkpoint=self.checkpoint, **machines)
        self.history = pd.DataFrame(epochs)
        self._mean, self._net = rows.mean, network.requires_grad_(False)

    def _network(self, n_genes: int, n_sections: int) -> GeneNetwork:
        return GeneNetwork(
            n_genes, n_sections, likelihood=self.likelihood, widths=self.widths, n_latent=self.n_latent,
            dropout=self.dropout, neighbours=self.neighbours,
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

    def _arrays(self) -> tuple[dict[str, Any], Arrays]:
        weights = {name: value.cpu().numpy() for name, value in self._net.state_dict().items()}
        learned = {"programmes_used": self.programmes_used, "target": self._target}
        return learned, {"mean": self._mean} | prefixed("network", weights)

    def _restore(self, config: dict[str, Any], arrays: Arrays) -> None:
        self.programmes_used, self._target, self._mean = config["programmes_used"], config["target"], arrays["mean"]
        self._net = self._network(len(self.genes), len(self.sections_seen))
        self._net.load_state_dict({k: torch.from_numpy(v) for k, v in subset("network", arrays).items()})
        self._net.requires_grad_(False).eval()

    def _card(self) -> list[str]:
        last = self.history.tail(1)
        scores = ", ".join(f"{name.replace('_', ' ')} {last[name].item():.4g}" for name in self.history.columns[1:])
        return [
            f"- genes: {len(self.genes)}, embedding of {self.n_latent} dimensions",
            f"- trained to predict hidden genes ({self.masking}, {self.mask_rate:.0%}), likelihood {self.likelihood}",
            f"- epochs: {len(self.history)}; last: {scores}",
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]
