"""scVI and scANVI as gene encoders: scvi-tools trains them, and their encoder is kept, so that it is safe to share."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from histoweave._device import resolve_device
from histoweave._random import child_seeds, torch_seed
from histoweave._settings import settings
from histoweave._validate import require_choice, require_labels
from histoweave.models._base import Arrays, prefixed, subset
from histoweave.models.gene_autoencoder._base import GeneEncoder
from histoweave.models.gene_autoencoder._data import Expression

METHODS = ("scvi", "scanvi")
SEED_VARIABLE = "PL_GLOBAL_SEED"  # Lightning leaves the seed there for its workers
SCANVI_EPOCHS = 20  # after scVI's, as scvi-tools' own default does for large tables


def require_scvi() -> Any:
    """Import scvi-tools, or say which extra installs it."""
    try:
        import scvi
    except ImportError as error:
        msg = "method='scvi' and 'scanvi' need scvi-tools: `pip install 'histoweave[scvi]'`."
        raise ImportError(msg) from error
    return scvi


@contextmanager
def _scvi_seed(scvi: Any, random_state: int) -> Iterator[None]:
    """Seed what scvi-tools seeds, which is global, and put all of it back."""
    kept, state, python = os.environ.get(SEED_VARIABLE), np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch_seed(random_state):
        try:
            scvi.settings.seed = child_seeds(random_state, 1)[0]
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
            random.setstate(python)
            os.environ.pop(SEED_VARIABLE, None)
            if kept is not None:
                os.environ[SEED_VARIABLE] = kept


class ScviEncoder(GeneEncoder):
    """Embed counts by scVI, or by scANVI where some rows are labelled, trained by scvi-tools.

    Parameters
    ----------
    method
        ``"scvi"`` or ``"scanvi"``.
    n_latent
        Dimensions of the embedding.
    n_top_genes
        Variable genes to choose in ``fit``, where the table does not mark them.
    likelihood
        ``"zinb"``, ``"nb"`` or ``"poisson"``.
    n_hidden, n_layers
        Size of the hidden layers, and their number.
    batch_size
        Rows a training step.
    max_epochs
        Epochs of scVI. Default: scvi-tools' own rule. scANVI trains 20 more.
    min_share
        Least share of the model's genes that a new table must have.
    device
        As :data:`histoweave.settings`.
    random_state
        Seed.

    Attributes
    ----------
    genes
        Names of the genes used.
    sections_seen
        Sections whose counts were seen in ``fit``.
    history
        Training loss (negative ELBO) of every epoch (a DataFrame).

    Notes
    -----
    Lopez et al. (2018), Nature Methods 15:1053; Xu et al. (2021), Molecular Systems Biology 17:e9620. The section
    is the batch and is told to the decoder alone, so that new sections can be embedded. Only the encoder is kept
    and saved. scVI cannot leave genes out: those that a table lacks are taken to be 0, with a warning.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> model = hw.models.ScviEncoder(n_latent=10).fit(adata)  # doctest: +SKIP
    """

    _without = " and taken to be 0, which changes the embedding; `method='masked'` can leave genes out."

    def __init__(
        self,
        method: str = "scvi",
        *,
        n_latent: int = 30,
        n_top_genes: int = 2000,
        likelihood: str = "nb",
        n_hidden: int = 128,
        n_layers: int = 1,
        batch_size: int = 128,
        max_epochs: int | None = None,
        min_share: float = 0.3,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        require_choice(method, METHODS, argument="method")
        require_choice(likelihood, ("zinb", "nb", "poisson"), argument="likelihood")
        self._set_arguments(locals())

    @property
    def labels_seen(self) -> list[str]:
        """Sections whose labels were learned from, for ``method="scanvi"``."""
        return list(self.sections_seen) if self.method == "scanvi" else []

    def _learn(self, expression: Expression, table: AnnData, labels_key: str) -> None:
        labels = require_labels(table, labels_key) if self.method == "scanvi" else None
        rows = np.flatnonzero(np.diff(expression.counts.indptr) > 0)
        if len(rows) < 2:
            msg = f"At least 2 rows with counts of the chosen genes are needed, found {len(rows)} of {table.n_obs}."
            raise ValueError(msg)
        at = expression.rows[rows]
        obs = pd.DataFrame({"section": expression.section[rows]}, index=table.obs_names[at])
        if labels is not None:
            obs["label"] = labels.iloc[at].fillna("").to_numpy()
        module, self.history = self._train(AnnData(expression.counts[rows], obs=obs))
        self._net = module.z_encoder.cpu().eval().requires_grad_(False)

    def _train(self, light: AnnData) -> tuple[Any, pd.DataFrame]:
        scvi = require_scvi()
        from histoweave.models._lightning import quiet

        kind, _, number = resolve_device(self.device).partition(":")
        options = {
            "accelerator": "gpu" if kind == "cuda" else kind, "devices": [int(number)] if number else 1,
            "batch_size": self.batch_size, "enable_progress_bar": settings.progress,
        }  # fmt: skip
        with _scvi_seed(scvi, self.random_state), quiet():
            scvi.model.SCVI.setup_anndata(light, batch_key="section")
            model = scvi.model.SCVI(
                light, n_latent=self.n_latent, n_hidden=self.n_hidden, n_layers=self.n_layers,
                gene_likelihood=self.likelihood,
            )  # fmt: skip
            model.train(max_epochs=self.max_epochs, **options)
            if self.method == "scanvi":
                model = scvi.model.SCANVI.from_scvi_model(model, unlabeled_category="", labels_key="label")
                model.train(max_epochs=SCANVI_EPOCHS, **options)
        loss = model.history["elbo_train"].iloc[:, 0].astype(float).to_numpy()
        return model.module, pd.DataFrame({"epoch": np.arange(1, len(loss) + 1), "train_loss": loss})

    def _embed(self, expression: Expression) -> np.ndarray:
        out = np.full((len(expression.rows), self.n_latent), np.nan, dtype=np.float32)
        usable = np.flatnonzero(np.diff(expression.counts.indptr) > 0)
        for start in range(0, len(usable), 2048):
            part = usable[start : start + 2048]
            hidden = self._net.encoder(torch.log1p(torch.from_numpy(expression.counts[part].toarray())))
            out[part] = self._net.mean_encoder(hidden).numpy()
        return out

    def _arrays(self) -> tuple[dict[str, Any], Arrays]:
        return {}, prefixed("encoder", {k: v.numpy() for k, v in self._net.state_dict().items()})

    def _restore(self, config: dict[str, Any], arrays: Arrays) -> None:
        require_scvi()
        from scvi.nn import Encoder

        self._net = Encoder(
            len(self.genes), self.n_latent, n_layers=self.n_layers, n_hidden=self.n_hidden, return_dist=True
        )
        self._net.load_state_dict({k: torch.from_numpy(v) for k, v in subset("encoder", arrays).items()})
        self._net.eval().requires_grad_(False)

    def _card(self) -> list[str]:
        return [
            f"- {self.method} of scvi-tools, likelihood {self.likelihood}; the encoder only",
            f"- genes: {len(self.genes)}, embedding of {self.n_latent} dimensions",
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]
