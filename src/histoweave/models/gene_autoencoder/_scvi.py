"""scVI and scANVI as gene encoders: scvi-tools trains them, and their encoder is kept, so that it is safe to share."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from histoweave import _keys
from histoweave._device import resolve_device
from histoweave._random import child_seeds, torch_seed
from histoweave._resolve import get_table, section_column, sections
from histoweave._settings import settings
from histoweave._validate import require_choice, require_labels, require_number, warn
from histoweave.models._base import Arrays, Model, prefixed, require_fitted, subset
from histoweave.models.gene_autoencoder._data import spread_columns, variable_genes
from histoweave.pp._expression import raw_counts

if TYPE_CHECKING:
    from spatialdata import SpatialData

METHODS = ("scvi", "scanvi")
SEED_VARIABLE = "PL_GLOBAL_SEED"  # Lightning leaves the seed there for its workers
SCANVI_EPOCHS = 20  # after scVI's, as scvi-tools' own default does for large tables
ARGUMENTS = (
    "method", "n_latent", "n_top_genes", "likelihood", "n_hidden", "n_layers", "batch_size", "max_epochs", "min_share",
    "device", "random_state",
)  # fmt: skip


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


class ScviEncoder(Model):
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
        whole = {"n_latent": n_latent, "n_top_genes": n_top_genes, "n_hidden": n_hidden, "n_layers": n_layers}
        for name, value in (whole | {"batch_size": batch_size, "max_epochs": max_epochs or 1}).items():
            require_number(value, argument=name, at_least=1, integer=True)
        require_number(min_share, argument="min_share", above=0, at_most=1)
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        self.method, self.n_latent, self.n_top_genes, self.likelihood = method, n_latent, n_top_genes, likelihood
        self.n_hidden, self.n_layers, self.batch_size, self.max_epochs = n_hidden, n_layers, batch_size, max_epochs
        self.min_share, self.device, self.random_state = min_share, device, random_state
        self.genes: list[str] | None = None

    def fit(
        self,
        data: AnnData | SpatialData,
        *,
        labels_key: str = _keys.REGION,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> Self:
        """Choose genes and train on a table of raw counts.

        Parameters
        ----------
        data
            AnnData or SpatialData object.
        labels_key
            Labels in ``obs`` for ``method="scanvi"``, missing for unlabelled rows.
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
        ImportError
            scvi-tools is not installed.
        ValueError
            The values are not raw counts, or no gene varies.
        KeyError
            ``method="scanvi"`` and there is no column of labels.
        """
        self.genes = None
        table = get_table(data, table_key)
        labels = require_labels(table, labels_key) if self.method == "scanvi" else None
        counts = raw_counts(table, layer)[0]
        genes = variable_genes(table, counts, self.n_top_genes, library_key)
        chosen = counts[:, table.var_names.get_indexer(genes)]
        rows = np.flatnonzero(np.diff(chosen.indptr) > 0)
        if len(rows) < 2:
            msg = f"At least 2 rows with counts of the chosen genes are needed, found {len(rows)} of {table.n_obs}."
            raise ValueError(msg)
        obs = pd.DataFrame({"section": section_column(table, library_key)[rows]}, index=table.obs_names[rows])
        if labels is not None:
            obs["label"] = labels.iloc[rows].fillna("").to_numpy()
        light = AnnData(chosen[rows].astype(np.float32), obs=obs, var=pd.DataFrame(index=genes))
        module, self.history = self._train(light)
        self._net = module.z_encoder.cpu().eval().requires_grad_(False)
        self.sections_seen = list(sections(table, library_key))
        self.genes = genes
        return self

    def _train(self, light: AnnData) -> tuple[Any, pd.DataFrame]:
        scvi = require_scvi()
        from histoweave.models.gene_autoencoder._training import quiet

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

    def fit_embed(
        self,
        data: AnnData | SpatialData,
        *,
        labels_key: str = _keys.REGION,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Fit and return the embedding of the same table.

        Parameters
        ----------
        data, labels_key, layer, library_key, table_key
            As for :meth:`fit`.

        Returns
        -------
        The embedding ``(n_obs, n_latent)`` float32; rows without counts are NaN.
        """
        keys = {"layer": layer, "library_key": library_key, "table_key": table_key}
        return self.fit(data, labels_key=labels_key, **keys).embed(data, **keys)

    def overlap(self, data: AnnData | SpatialData, *, table_key: str = _keys.TABLE) -> float:
        """Return the share of the model's genes that a table has.

        Parameters
        ----------
        data, table_key
            As for :meth:`fit`.
        """
        require_fitted(self, "genes")
        return float(np.isin(self.genes, get_table(data, table_key).var_names).mean())

    def embed(
        self,
        data: AnnData | SpatialData,
        *,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Return the posterior means ``(n_obs, n_latent)`` float32; rows without counts are NaN.

        Parameters
        ----------
        data, layer, library_key, table_key
            As for :meth:`fit`.

        Raises
        ------
        ValueError
            The table has less than ``min_share`` of the genes, or its values are not raw counts.
        """
        share = self.overlap(data, table_key=table_key)
        table = get_table(data, table_key)
        if share < self.min_share:
            msg = (
                f"The table has {share:.0%} of the model's {len(self.genes)} genes, at least {self.min_share:.0%} are "
                f"needed. Model: {self.genes[:3]}...; table: {table.var_names[:3].tolist()}..."
            )
            raise ValueError(msg)
        at = table.var_names.get_indexer(self.genes)
        present = at >= 0
        if not present.all():
            warn(
                f"{(~present).sum()} of the model's {len(self.genes)} genes are not in the table and taken to be 0, "
                "which changes the embedding; `method='masked'` can leave genes out."
            )
        counts = spread_columns(raw_counts(table, layer)[0][:, at[present]], present)
        out = np.full((table.n_obs, self.n_latent), np.nan, dtype=np.float32)
        usable = np.flatnonzero(np.diff(counts.indptr) > 0)
        for start in range(0, len(usable), 2048):
            part = usable[start : start + 2048]
            hidden = self._net.encoder(torch.log1p(torch.from_numpy(counts[part].toarray())))
            out[part] = self._net.mean_encoder(hidden).numpy()
        return out

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "genes")
        config = {name: getattr(self, name) for name in (*ARGUMENTS, "genes", "sections_seen")}
        config["history"] = self.history.to_dict("records")
        return config, prefixed("encoder", {k: v.numpy() for k, v in self._net.state_dict().items()})

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        require_scvi()
        from scvi.nn import Encoder

        model = cls(**{name: config[name] for name in ARGUMENTS})
        model._net = Encoder(
            len(config["genes"]), model.n_latent, n_layers=model.n_layers, n_hidden=model.n_hidden, return_dist=True
        )
        model._net.load_state_dict({k: torch.from_numpy(v) for k, v in subset("encoder", arrays).items()})
        model._net.eval().requires_grad_(False)
        model.sections_seen, model.history = config["sections_seen"], pd.DataFrame(config["history"])
        model.genes = config["genes"]
        return model

    def _card(self) -> list[str]:
        return [
            f"- {self.method} of scvi-tools, likelihood {self.likelihood}; the encoder only",
            f"- genes: {len(self.genes)}, embedding of {self.n_latent} dimensions",
            f"- sections seen: {', '.join(self.sections_seen)}",
        ]
