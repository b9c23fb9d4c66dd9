"""How an image encoder is trained: the arguments that no other way of embedding needs."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from histoweave import _keys
from histoweave._validate import listing, require_choice, require_number
from histoweave.loaders import Augmentation
from histoweave.loaders import augmentation as views
from histoweave.models.image_encoder._losses import MINING

PROBES = ("knn", "linear")
LOCAL = ("checkpoint", "devices", "strategy", "num_nodes")  # of this machine: they neither are saved nor decide weights


@dataclass(frozen=True)
class ImageTraining:
    """How the network of an :class:`histoweave.models.ImageEncoder` is trained.

    Parameters
    ----------
    max_epochs
        Passes over the crops. Sections give an epoch equal numbers of crops; methods that need labels only show
        equal numbers of every class.
    learning_rate
        Highest learning rate of AdamW; it rises over the first tenth of the steps and falls as a cosine.
    layer_decay
        Every layer below the last learns slower by this factor, 0.65 to 0.9 when training starts from published
        weights (Clark et al., 2020; Bao et al., 2022); 1 for all the same.
    augmentation
        How views are drawn: ``"histology"``, ``"radiograph"``, ``"light"``, or a
        ``histoweave.loaders.Augmentation``.
    temperature
        Of ``"simclr"``, ``"supcon"`` and ``"gene_contrast"``: lower values weigh the most similar other crops more.
    margin
        Of triplets: how much farther than the positive the negative shall be, of unit vectors (Schroff et al., 2015).
    mining
        Which triplets of a batch count: ``"all"`` that violate the margin, ``"semi_hard"``, or ``"batch_hard"``.
    label_smoothing
        Of ``"supervised"`` (Szegedy et al., 2016).
    labels_key
        Labels in ``obs`` for ``"triplet"``, ``"supcon"``, ``"supervised"`` and for ``probe``. Missing is unlabelled.
    genes_key
        Embedding of expression in ``obsm`` for ``"gene_triplet"`` and ``"gene_contrast"``.
    quantiles
        Cosine similarities of expression up to the first quantile make negatives, from the second on positives.
    across_key
        Column of ``obs``, e.g. ``"donor"``; positives of similar expression are of two of its values, where it has
        several. Default: the section.
    patience
        Stop when the loss, or the score of ``probe``, has not improved for so many epochs.
    probe
        ``"knn"`` or ``"linear"``: after every epoch, score a classifier of the features on labelled rows that are
        held out, whole sections where there are several: :attr:`history` has its balanced accuracy. The labels of
        these rows are not used in training. For stopping, not for reporting: training is stopped where it is high.
    checkpoint
        File that keeps the state of the training after every epoch. Where it exists, the same training is continued,
        with the same result as if it had not been interrupted; it is removed when the training is complete.
    scale_token
        With crops of several scales: tell the network which scale it sees, by a gain and an offset of the channels
        after its first layer, learned for each scale.
    devices, strategy, num_nodes
        As for Lightning's ``Trainer``. ``batch_size`` is that of all processes together; each contrasts its own share.

    Examples
    --------
    >>> import histoweave as hw
    >>> hw.models.ImageTraining(max_epochs=100, layer_decay=0.75).learning_rate
    0.001
    """

    max_epochs: int = 50
    learning_rate: float = 1e-3
    layer_decay: float = 1.0
    augmentation: str | Augmentation = "histology"
    temperature: float = 0.2
    margin: float = 0.2
    mining: str = "semi_hard"
    label_smoothing: float = 0.1
    labels_key: str = _keys.REGION
    genes_key: str = _keys.X_GENE
    quantiles: tuple[float, float] = (0.5, 0.95)
    across_key: str | None = None
    patience: int | None = None
    probe: str | None = None
    checkpoint: str | os.PathLike[str] | None = None
    scale_token: bool = False
    devices: int | str | list[int] = 1
    strategy: str = "auto"
    num_nodes: int = 1

    def __post_init__(self) -> None:
        require_number(self.max_epochs, argument="max_epochs", at_least=1, integer=True)
        require_number(self.learning_rate, argument="learning_rate", above=0)
        require_number(self.layer_decay, argument="layer_decay", above=0, at_most=1)
        require_number(self.temperature, argument="temperature", above=0)
        require_number(self.margin, argument="margin", above=0)
        require_choice(self.mining, MINING, argument="mining")
        require_number(self.label_smoothing, argument="label_smoothing", at_least=0, below=1)
        if not isinstance(self.quantiles, tuple | list) or len(self.quantiles) != 2:
            msg = f"`quantiles` must be two numbers, of negatives and of positives, got {self.quantiles!r}."
            raise ValueError(msg)
        low, high = self.quantiles
        require_number(high, argument="quantiles[1]", above=0, below=1)
        require_number(low, argument="quantiles[0]", above=0, at_most=high)
        if self.patience is not None:
            require_number(self.patience, argument="patience", at_least=1, integer=True)
        require_choice(self.probe, (None, *PROBES), argument="probe")
        require_number(self.num_nodes, argument="num_nodes", at_least=1, integer=True)
        object.__setattr__(self, "augmentation", views(self.augmentation))
        object.__setattr__(self, "quantiles", (float(low), float(high)))

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> ImageTraining:
        """Return the training of keyword arguments.

        Parameters
        ----------
        arguments
            By name.

        Raises
        ------
        TypeError
            A training has no such argument.
        """
        known = [f.name for f in fields(cls)]
        unknown = [name for name in arguments if name not in known]
        if unknown:
            msg = f"There is no argument {listing(unknown)}; those of training are {', '.join(known)}."
            raise TypeError(msg)
        return cls(**arguments)

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the weights and is saved with them, as plain values."""
        return {name: value for name, value in asdict(self).items() if name not in LOCAL}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageTraining:
        """Return the training that :meth:`to_dict` wrote down.

        Parameters
        ----------
        values
            As read from JSON.
        """
        drawn = {k: tuple(v) if isinstance(v, list) else v for k, v in values["augmentation"].items()}
        return cls(**values | {"augmentation": Augmentation(**drawn)})
