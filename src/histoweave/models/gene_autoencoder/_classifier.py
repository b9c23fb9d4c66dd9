"""Regions from genes: an encoder that was trained without labels, tuned on a few."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from histoweave import _keys
from histoweave._random import child_seeds
from histoweave._resolve import get_table, sections
from histoweave._settings import track
from histoweave._validate import require_choice, require_number, warn
from histoweave.models._base import require_fitted
from histoweave.models._inner_groups import inner_groups
from histoweave.models._prepare import masked_labels
from histoweave.models.fusion._heads import LinearHead
from histoweave.models.fusion._inner import LINEAR_C, apart, balanced_log_loss, fit_head, inner_folds
from histoweave.models.gene_autoencoder._classified import ENCODERS, Classified, parts
from histoweave.models.gene_autoencoder._finetune import GeneLogits, tune
from histoweave.models.gene_autoencoder._pca import GenePCA
from histoweave.models.gene_autoencoder._views import Views

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from histoweave.models.gene_autoencoder._model import GeneAutoencoder

STRATEGIES = ("frozen", "adapter", "full")
LEARNING_RATES = {"frozen": 1e-3, "adapter": 1e-3, "full": 1e-4}
STRENGTHS = (0.001, *LINEAR_C)  # of the head's regularisation, to choose from


class GeneClassifier(Classified):
    """Tune a fitted gene encoder on few labels; differentiable from gene values to logits.

    Parameters
    ----------
    encoder
        A fitted :class:`GeneAutoencoder`, or a fitted :class:`GenePCA` (``strategy="frozen"`` only). It is copied,
        not changed.
    strategy
        ``"frozen"``: a linear head on the embedding. ``"adapter"``: that head and small bottlenecks inside the
        encoder [1]_. ``"full"``: that head and the whole encoder. The latter two start from the frozen one [2]_.
    n_rings
        Rings of neighbours whose mean expression is embedded beside the spot's own; 0 for none.
    bottleneck
        Width of the adapters.
    label_smoothing
        Share of each label that is spread over all classes while the encoder is tuned.
    max_epochs
        Most epochs of tuning; how many there are is chosen on inner folds, none at all included.
    learning_rate
        Of AdamW. Default: 1e-3 for adapters, 1e-4 for the whole encoder.
    weight_decay, batch_size
        Of AdamW.
    n_inner
        Inner folds that choose regularisation and epochs. Donors, sections or blocks are never split.
    random_state
        Seed.

    Attributes
    ----------
    classes
        Class names in the order of the probability columns.
    network
        The torch module from ``(n, 1 + n_rings, genes)`` to logits.
    history
        ``epoch``, ``train_loss`` of the final training and ``validation_loss``, the class-balanced log loss over
        inner folds; epoch 0 is the frozen encoder.
    epochs_chosen
        Epochs of tuning that were chosen.
    sections_seen, sections_labelled
        Sections that the encoder, or the labels, came from.
    inner_groups
        What the inner folds kept together: ``"donor"``, ``"section"``, ``"block"`` or ``"row"``.

    Notes
    -----
    Classes weigh the same, however many spots each has. Values are centred as in the encoder, so a gene at its
    mean is 0. Genes that a new table lacks are what the encoder predicts from the others. Rows without counts are NaN.

    References
    ----------
    .. [1] Houlsby et al., ICML 2019.
    .. [2] Kumar et al., ICLR 2022.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(labelled_fraction=0.2)
    >>> encoder = hw.models.GenePCA(n_components=10).fit(adata)
    >>> clf = hw.models.GeneClassifier(encoder).fit(adata)
    >>> clf.predict_proba(adata).shape
    (400, 4)
    """

    def __init__(
        self,
        encoder: GeneAutoencoder | GenePCA,
        *,
        strategy: str = "frozen",
        n_rings: int = 1,
        bottleneck: int = 8,
        label_smoothing: float = 0.05,
        max_epochs: int = 20,
        learning_rate: float | None = None,
        weight_decay: float = 0.01,
        batch_size: int = 64,
        n_inner: int = 4,
        random_state: int = 0,
    ) -> None:
        require_choice(strategy, STRATEGIES, argument="strategy")
        if type(encoder).__name__ not in ENCODERS:
            msg = f"`encoder` must be a fitted GeneAutoencoder or GenePCA, got {type(encoder).__name__}."
            raise TypeError(msg)
        require_fitted(encoder, "genes")
        if getattr(encoder, "neighbours", False):
            msg = (
                "`encoder` was trained with `neighbours=True`, and the classifier looks at spots and rings of "
                "neighbours by themselves (`n_rings`). Pass one trained without."
            )
            raise ValueError(msg)
        if isinstance(encoder, GenePCA) and strategy != "frozen":
            msg = f"`strategy={strategy!r}` tunes a network; principal components go with 'frozen'."
            raise ValueError(msg)
        require_number(n_rings, argument="n_rings", at_least=0, integer=True)
        require_number(label_smoothing, argument="label_smoothing", at_least=0, below=1)
        require_number(weight_decay, argument="weight_decay", at_least=0)
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        learning_rate = LEARNING_RATES[strategy] if learning_rate is None else learning_rate
        require_number(learning_rate, argument="learning_rate", above=0)
        for name, value in {"bottleneck": bottleneck, "max_epochs": max_epochs, "batch_size": batch_size}.items():
            require_number(value, argument=name, at_least=1, integer=True)
        require_number(n_inner, argument="n_inner", at_least=2, integer=True)
        # `fit` of an encoder gives it new attributes, so that this one stays as it is
        self.encoder, self.strategy, self.n_rings, self.bottleneck = copy(encoder), strategy, n_rings, bottleneck
        self.label_smoothing, self.max_epochs, self.learning_rate = label_smoothing, max_epochs, learning_rate
        self.weight_decay, self.batch_size, self.n_inner = weight_decay, batch_size, n_inner
        self.random_state = random_state
        self.classes: list[str] | None = None

    def fit(
        self,
        data: AnnData | SpatialData,
        *,
        labels_key: str = _keys.REGION,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        donor_key: str = _keys.DONOR,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> Self:
        """Learn regions from the labelled rows.

        Parameters
        ----------
        data
            AnnData or SpatialData object with raw counts: whole sections, labelled in part.
        labels_key
            Labels in ``obs``; missing for unlabelled rows.
        layer
            Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
        library_key, donor_key
            Columns of ``obs`` that name the section and, where known, the donor.
        spatial_key
            ``obsm`` key of the coordinates.
        table_key
            Table of a SpatialData object.

        Returns
        -------
        The fitted classifier.

        Raises
        ------
        KeyError
            There is no such column of labels.
        ValueError
            Fewer than two classes are labelled, or as for :meth:`GeneAutoencoder.embed`.
        """
        self.classes = None  # not fitted again until all is done
        table = get_table(data, table_key)
        labels = masked_labels(table, labels_key)
        views = self.views(table, layer=layer, library_key=library_key, spatial_key=spatial_key)
        labelled = np.flatnonzero(labels.notna().to_numpy() & views.usable)
        classes = sorted(labels.iloc[labelled].unique())
        if len(classes) < 2:
            msg = f"At least 2 classes need labelled rows with counts, found {len(classes)}."
            raise ValueError(msg)
        codes = pd.Categorical(labels, categories=classes).codes.astype(np.int64)
        where = {"library_key": library_key, "donor_key": donor_key, "spatial_key": spatial_key}
        groups = inner_groups(table, labels.notna().to_numpy(), n_rings=self.n_rings, **where)
        self.inner_groups = groups.kind
        positions = None if groups.positions is None else groups.positions[labelled]
        fold_seed, *seeds = child_seeds(self.random_state, 3)
        fold = inner_folds(codes[labelled], pd.factorize(groups.of_row[labelled])[0], self.n_inner, fold_seed)
        self._learn(views, labelled, codes, len(classes), fold, positions, seeds)
        self.sections_labelled = [name for name, rows in sections(table, library_key).items()
                                  if np.isin(rows, labelled).any()]  # fmt: skip
        self.classes = classes
        return self

    def _learn(
        self, views: Views, rows: np.ndarray, codes: np.ndarray, n_classes: int, fold: np.ndarray,
        positions: np.ndarray | None, seeds: list[int],
    ) -> None:  # fmt: skip
        """Fit the head, choose the number of epochs on the inner folds, tune that long on all labelled rows."""
        head_seed, tune_seed = seeds
        network = self._network(n_classes, views.n_views).to(views.device)
        with torch.no_grad():
            Z = np.concatenate([network.embed(views.batch(p), views.present).cpu().numpy() for p in parts(rows)])
        y = codes[rows]
        with threadpool_limits(1):
            head, p = fit_head([LinearHead(C) for C in STRENGTHS], Z, y, n_classes, fold, head_seed, positions)
        self.C = head.C
        network.take_head(head)
        self.epochs_chosen, validation, losses = 0, [balanced_log_loss(p, y)], [np.nan]
        if self.strategy != "frozen":
            curves = self._inner_curves(views, rows, codes, Z, n_classes, fold, positions, tune_seed)
            if curves:
                validation = np.mean(curves, axis=0)
                self.epochs_chosen = int(validation.argmin())
            else:
                validation, self.epochs_chosen = [np.nan] * (self.max_epochs + 1), self.max_epochs
                warn(f"Too few labels to choose the number of epochs by: all {self.max_epochs} are used.")
            losses, _ = self._tune(network, views, rows, codes, self.epochs_chosen, tune_seed)
        self.history = pd.DataFrame({"validation_loss": validation}).assign(train_loss=pd.Series(losses))
        self.history.insert(0, "epoch", range(len(self.history)))
        self.network = network.requires_grad_(False).eval()

    def _inner_curves(
        self, views: Views, rows: np.ndarray, codes: np.ndarray, Z: np.ndarray, n_classes: int, fold: np.ndarray,
        positions: np.ndarray | None, seed: int,
    ) -> list[list[float]]:  # fmt: skip
        """Held-out loss before and after every epoch, one list an inner fold."""
        curves = []
        for number in track(np.unique(fold[fold >= 0]), "fine-tuning", unit="fold"):
            test = fold == number
            train = apart(test, positions)
            known = np.flatnonzero(test)[np.isin(codes[rows[test]], codes[rows[train]])]
            if len(np.unique(codes[rows[train]])) < 2 or not len(known):
                continue
            with threadpool_limits(1):
                head = LinearHead(self.C).fit(Z[train], codes[rows[train]], n_classes, seed)
            network = self._network(n_classes, views.n_views).to(views.device).take_head(head)
            _, curve = self._tune(network, views, rows[train], codes, self.max_epochs, seed, rows[known])
            curves.append(curve)
        return curves

    def _tune(
        self, network: GeneLogits, views: Views, rows: np.ndarray, codes: np.ndarray, epochs: int, seed: int,
        held_out: np.ndarray | tuple[int, ...] = (),
    ) -> tuple[list[float], list[float]]:  # fmt: skip
        return tune(
            network, views.batch, views.present, rows, codes, epochs=epochs, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, label_smoothing=self.label_smoothing, batch_size=self.batch_size,
            seed=seed, held_out=held_out,
        )  # fmt: skip
