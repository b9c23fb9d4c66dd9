"""The image classifier a user holds: crops of a table in, a class per row out, learned from few labels."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._device import resolve_device, resolve_precision
from histoweave._resolve import get_table, sections
from histoweave._validate import listing, require_choice, require_key, require_number
from histoweave.loaders import Augmentation
from histoweave.loaders import augmentation as views
from histoweave.models._base import Model, most_probable, require_fitted
from histoweave.models._prepare import masked_labels
from histoweave.models.image_classifier._fine_tune import fit_network, starting_encoder
from histoweave.models.image_classifier._linear import fit_linear
from histoweave.models.image_classifier._module import LogitNetwork, logit_network
from histoweave.models.image_classifier._saved import ARGUMENTS, SavedClassifier
from histoweave.models.image_classifier._training import Plan
from histoweave.models.image_encoder import ImageEncoder
from histoweave.pp._context import context_features
from histoweave.pp._graph import ring_graphs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

STRATEGIES = ("linear", "fine_tune", "scratch")
RATES = {"fine_tune": (3e-4, 0.1), "scratch": (1e-3, 1.0)}  # highest learning rate, share of it for the first layer


class ImageClassifier(SavedClassifier, Model):
    """Learn classes of crops from few labels: on a frozen encoder, by fine-tuning it, or from scratch.

    Features are standardised within each section throughout, in training with statistics of labelled and unlabelled
    crops alike. Every class has equal weight, so probabilities refer to equal shares of the classes.

    Parameters
    ----------
    encoder
        An :class:`ImageEncoder` or the folder of a saved one; not changed. One that is not fitted is fitted on all
        rows, labelled or not. ``None``: a network with random weights.
    strategy
        ``"linear"``: logistic regression on the embedding; its strength is chosen on inner folds that keep donors,
        sections or blocks of tissue together. ``"fine_tune"``: starts from that solution and trains all layers,
        the first more slowly than the last; batch normalisation stays as the encoder has it. ``"scratch"``:
        trains a network with random weights in the same way.
    backbone
        timm name of the network without ``encoder``, or ``"resnet18-small"`` (34, 50) or ``"tiny"``.
    crops_keys
        Crops in ``obsm`` without ``encoder``, one or several scales; an encoder has its own.
    n_rings
        Rings of neighbours whose mean embeddings are put beside a row's own (``"linear"`` only).
    n_steps
        Steps of the optimiser, AdamW; the rate rises over the first tenth and falls as a cosine. There is no early
        stopping: few labels leave none to stop by.
    learning_rate
        Highest learning rate, that of the last layer. Default: 3e-4 to fine-tune, 1e-3 from scratch.
    first_layer
        Share of the learning rate that the first layer has; it rises geometrically from layer to layer. Default: 0.1
        to fine-tune, 1 from scratch.
    batch_size
        Crops of each scale in a step, as many of each class as of the others.
    label_smoothing
        Share of the truth that is spread over all classes in training.
    augmentation
        How crops are varied in training: ``"light"``, ``"histology"``, ``"radiograph"``, or a
        ``histoweave.loaders.Augmentation``.
    device, precision
        As :data:`histoweave.settings`; with ``"auto"`` an encoder keeps its own.
    random_state
        Seed.

    Attributes
    ----------
    classes
        Class names in the order of the probability columns.
    encoder
        The encoder behind it, fine-tuned where that was asked for.
    sections_seen
        Sections whose pixels were seen, by the encoder as well.
    history
        ``"linear"``: the chosen strength and its scores on inner folds. Otherwise step, loss and learning rate.

    Notes
    -----
    Layers that learn at different rates: Howard & Ruder (2018), ACL. Linear solution first: Kumar et al. (2022), ICLR.
    Label smoothing: Szegedy et al. (2016), CVPR.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.crops(adata)
    >>> clf = hw.models.ImageClassifier(hw.models.ImageEncoder("statistics")).fit(adata)
    >>> clf.predict(adata).columns.tolist()
    ['predicted', 'confidence']
    """

    def __init__(
        self,
        encoder: ImageEncoder | str | os.PathLike[str] | None = None,
        *,
        strategy: str = "linear",
        backbone: str = "resnet18",
        crops_keys: str | Sequence[str] = _keys.CROPS,
        n_rings: int = 0,
        n_steps: int = 300,
        learning_rate: float | None = None,
        first_layer: float | None = None,
        batch_size: int = 32,
        label_smoothing: float = 0.1,
        augmentation: str | Augmentation = "light",
        device: str = "auto",
        precision: str = "auto",
        random_state: int = 0,
    ) -> None:
        require_choice(strategy, STRATEGIES, argument="strategy")
        require_number(n_rings, argument="n_rings", at_least=0, integer=True)
        require_number(n_steps, argument="n_steps", at_least=1, integer=True)
        require_number(batch_size, argument="batch_size", at_least=2, integer=True)
        require_number(label_smoothing, argument="label_smoothing", at_least=0, below=1)
        require_number(random_state, argument="random_state", at_least=0, integer=True)
        rate, first = RATES.get(strategy, (None, None))
        self.learning_rate = rate if learning_rate is None else learning_rate
        self.first_layer = first if first_layer is None else first_layer
        if strategy != "linear":
            require_number(self.learning_rate, argument="learning_rate", above=0)
            require_number(self.first_layer, argument="first_layer", above=0, at_most=1)
        self.strategy, self.n_rings, self.n_steps = strategy, int(n_rings), int(n_steps)
        self.batch_size, self.label_smoothing = int(batch_size), float(label_smoothing)
        self.augmentation, self.device, self.precision = views(augmentation), device, precision
        self.random_state = int(random_state)
        if n_rings and strategy != "linear":
            msg = f"`n_rings={n_rings}` needs `strategy='linear'`: other strategies look at crops one by one."
            raise ValueError(msg)
        own = {"backbone": backbone, "crops_keys": crops_keys, "random_state": self.random_state}
        self._source = starting_encoder(encoder, strategy, device=device, precision=precision, **own)
        self.encoder: ImageEncoder | None = None
        self.classes: list[str] | None = None

    @property
    def crops_keys(self) -> tuple[str, ...]:
        """Crops in ``obsm`` that it looks at."""
        return self._source.crops_keys

    def fit(
        self,
        data: AnnData | SpatialData,
        *,
        labels_key: str = _keys.REGION,
        library_key: str = _keys.LIBRARY,
        donor_key: str = _keys.DONOR,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> Self:
        """Fit on the labelled rows; unlabelled ones help to standardise. ``data`` is not changed.

        A classifier that was loaded starts from the encoder that it was saved with, which has seen what
        ``sections_seen`` tells: for a new fold, make a new classifier.

        Parameters
        ----------
        data
            AnnData or SpatialData object with crops.
        labels_key
            Labels in ``obs``; missing for unlabelled rows.
        library_key, donor_key
            Columns of ``obs`` that name the section and, where known, the donor.
        spatial_key
            ``obsm`` key of the coordinates, where there are any: inner folds and neighbours need them.
        table_key
            Table of a SpatialData object.

        Returns
        -------
        The fitted classifier.

        Raises
        ------
        KeyError
            There are no labels, no crops, or no coordinates for ``n_rings``.
        ValueError
            Fewer than two classes have labelled rows with crops.
        FloatingPointError
            The loss is not finite.
        """
        table = get_table(data, table_key)
        labels = masked_labels(table, labels_key).to_numpy()
        keys = {"library_key": library_key, "spatial_key": spatial_key}
        self.classes = None  # not fitted again until all is done
        encoder = deepcopy(self._source)
        X = self._embedding(encoder, table, **keys)
        labels = np.where(np.isnan(X).any(axis=1), None, labels)
        names = sorted(set(labels[pd.notna(labels)]))
        if len(names) < 2:
            msg = f"At least 2 classes need labelled rows with crops, found {listing(names)}. Label more rows."
            raise ValueError(msg)
        head = None
        if self.strategy != "scratch":
            common = {"n_rings": self.n_rings, "random_state": self.random_state, "donor_key": donor_key}
            head, history = fit_linear(table, X, labels, **common, **keys)
        if self.strategy != "linear":
            codes = pd.Categorical(labels, categories=names).codes
            head, history = fit_network(table, encoder, head, codes, self._plan(), library_key)
        self.encoder, self._head, self.history = encoder, head, pd.DataFrame(history)
        self.sections_seen = list(dict.fromkeys([*encoder.sections_seen, *sections(table, library_key)]))
        self.classes = names
        return self

    def _plan(self) -> Plan:
        names = (name for name in (*ARGUMENTS, "augmentation") if name not in ("strategy", "n_rings"))
        precision = resolve_precision(self._source.precision, resolve_device(self._source.device))
        arguments = {name: getattr(self, name) for name in names}
        return Plan(**arguments, precision=precision, batch_norm=self.strategy == "scratch")

    def _embedding(self, encoder: ImageEncoder, table: AnnData, *, library_key: str, spatial_key: str) -> np.ndarray:
        embed = encoder.fit_embed if encoder.sections_seen is None else encoder.embed
        values = embed(table, library_key=library_key)
        if not self.n_rings:
            return values
        require_key(table.obsm, spatial_key, where="adata.obsm", argument="spatial_key")
        rings = ring_graphs(table, n_rings=self.n_rings, library_key=library_key, spatial_key=spatial_key)
        return context_features(values, rings)

    def embed(
        self,
        data: AnnData | SpatialData,
        *,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> np.ndarray:
        """Return what the classifier sees, ``(n_obs, d)`` float32; rows without crops are NaN.

        Parameters
        ----------
        data
            Whole sections: standardisation and neighbourhoods use all their rows.
        library_key, spatial_key, table_key
            As for :meth:`fit`.
        """
        require_fitted(self, "classes")
        keys = {"library_key": library_key, "spatial_key": spatial_key}
        return self._embedding(self.encoder, get_table(data, table_key), **keys)

    def predict_proba(
        self,
        data: AnnData | SpatialData,
        *,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Return probabilities, one row a row of the table, one column a class; NaN without crops.

        Parameters
        ----------
        data, library_key, spatial_key, table_key
            As for :meth:`embed`.
        """
        X = self.embed(data, library_key=library_key, spatial_key=spatial_key, table_key=table_key)
        index = get_table(data, table_key).obs_names
        return pd.DataFrame(self._head.predict_proba(X), index=index, columns=self.classes)

    def predict(
        self,
        data: AnnData | SpatialData,
        *,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Return the class of every row and its probability.

        Parameters
        ----------
        data, library_key, spatial_key, table_key
            As for :meth:`embed`.

        Returns
        -------
        A DataFrame with ``predicted`` and ``confidence``; missing for rows without crops.
        """
        keys = {"library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        return most_probable(self.predict_proba(data, **keys))

    @property
    def network(self) -> LogitNetwork:
        """The classifier of the first scale as a module on the CPU, see :meth:`network_of`."""
        return self.network_of(self.crops_keys[0])

    def network_of(self, crops_key: str) -> LogitNetwork:
        """Return the classifier of one scale as a module: pictures ``(n, 3, height, width)`` in 0..1 to logits.

        Other scales are held at their mean, neighbours are taken to be like the picture, and features are
        standardised with the training sections' pooled statistics.

        Parameters
        ----------
        crops_key
            One of ``crops_keys``.
        """
        require_fitted(self, "classes")
        require_choice(crops_key, self.crops_keys, argument="crops_key")
        return logit_network(self.encoder, self._head, self.crops_keys.index(crops_key), 1 + self.n_rings)
