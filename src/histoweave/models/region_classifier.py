"""The whole chain as one object: crops, encoders, neighbourhood, fusion, calibration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._resolve import get_table, sections
from histoweave._validate import require_choice, require_key, require_number
from histoweave.models._base import Model, require_fitted
from histoweave.models._chain import embed_all, fit_all, image_source, new_encoders, require_pixels_only, with_context
from histoweave.models._inner_groups import inner_groups, require_donors, tell_labels_seen
from histoweave.models._novelty import NoveltyCheck, TellsNovelty
from histoweave.models._prepare import light_table, masked_labels
from histoweave.models._saved_chain import SavedChain
from histoweave.models._similar import answer_neighbours
from histoweave.models.fusion import FusionClassifier
from histoweave.models.fusion._check import Graph
from histoweave.models.gene_autoencoder import ENCODERS
from histoweave.models.image_encoder import ImageEncoder
from histoweave.models.image_encoder._model import MIN_PX
from histoweave.pp._context import own_values

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

MODALITIES = ("image", "gene")
ARGUMENTS = (
    "image", "genes", "fusion", "crop_um", "out_px", "n_rings", "coverage", "image_options", "gene_options",
    "fusion_options", "random_state",
)  # fmt: skip


class RegionClassifier(TellsNovelty, SavedChain, Model):
    """Learn regions from a few labelled spots and map them on every spot, here and on new sections.

    Crops are cut around the spots, image and counts are embedded and standardised within each section, the
    neighbourhood's mean is put beside each spot's own embedding, and a fusion classifier is fitted on the
    labelled spots. Prediction works with the image only, the genes only, or both, spot by spot.

    Parameters
    ----------
    image
        Method of the :class:`ImageEncoder`; one that trains, and needs neither labels nor expression, is trained
        within ``fit`` on the crops. Or a fitted encoder, or the folder of a saved one, used as it is; or ``None`` to
        leave the image out.
    genes
        Gene encoder, ``"pca"`` or ``"masked"``, or ``None`` to leave the genes out.
    fusion
        ``"stack"``, ``"concat"``, ``"gated"`` or ``"cross_attention"``, see :class:`FusionClassifier`.
    crop_um
        Sides of the crops in um by ``obsm`` key. Default: 0.55, 1.1 and 3 array pitches as ``"crops_detail"``,
        ``"crops"`` and ``"crops_context"`` (for Visium 55, 110 and 300 um), or those of them the table has.
    out_px
        Side of a crop in pixels, at least 16; crops that the table has keep theirs.
    n_rings
        Rings of neighbours whose mean embedding is added, 0 for none.
    coverage
        Share of spots that should get an answer; the classifier abstains on the least confident rest.
    image_options, gene_options
        More arguments for the encoders, e.g. ``image_options={"backbone": "resnet18"}``.
    fusion_options
        More arguments for :class:`FusionClassifier`, e.g. ``fusion_options={"decision": "accuracy"}``, or
        ``{"smoothing": "potts"}`` to smooth the map over neighbours, ``{"smoothing": "similar"}`` over spots that look
        alike, as far as it helps on inner folds.
    random_state
        Seed.

    Attributes
    ----------
    classes
        Names of the regions.
    sections_seen
        Sections whose pixels or counts were seen in ``fit``, labelled or not.
    history
        Scores on inner folds per subset of modalities (a DataFrame).
    inner_groups
        What the inner folds keep together: ``"donor"``, ``"section"``, ``"block"`` or ``"row"``.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(4, n_rows=10, n_cols=10)
    >>> new = sections.obs["library_id"] == "section_4"
    >>> clf = hw.models.RegionClassifier().fit(sections[~new].copy())
    >>> clf.predict(sections[new].copy()).columns.tolist()
    ['predicted', 'confidence', 'abstain', 'modalities', 'novelty', 'out_of_distribution']
    """

    def __init__(
        self,
        *,
        image: str | Mapping[str, float] | os.PathLike[str] | ImageEncoder | None = "statistics",
        genes: str | None = "pca",
        fusion: str = "stack",
        crop_um: Mapping[str, float] | None = None,
        out_px: int = 64,
        n_rings: int = 1,
        coverage: float = 0.9,
        image_options: Mapping[str, Any] | None = None,
        gene_options: Mapping[str, Any] | None = None,
        fusion_options: Mapping[str, Any] | None = None,
        random_state: int = 0,
    ) -> None:
        image = image_source(image)
        require_choice(genes, (*ENCODERS, None), argument="genes")
        if image is None and genes is None:
            msg = "`image` and `genes` are both None: nothing to learn from."
            raise ValueError(msg)
        require_number(n_rings, argument="n_rings", at_least=0, integer=True)
        require_number(out_px, argument="out_px", at_least=MIN_PX, integer=True)
        for key, size in (crop_um or {}).items():
            require_number(size, argument=f"crop_um[{key!r}]", above=0)
        self.image, self.genes, self.fusion = image, genes, fusion
        self.crop_um = dict(crop_um) if crop_um else None
        self.out_px, self.n_rings, self.coverage = int(out_px), int(n_rings), float(coverage)
        self.image_options, self.gene_options = dict(image_options or {}), dict(gene_options or {})
        self.fusion_options = dict(fusion_options or {})
        self.random_state = random_state
        # wrong arguments are told now, not after the embedding
        self._new_fusion()
        if image is not None and not isinstance(image, ImageEncoder):
            require_pixels_only(ImageEncoder(**{"method": image} | self.image_options))
        if genes is not None:
            ENCODERS[genes](**self.gene_options)
        self.classes: list[str] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments it was made with: ``RegionClassifier(**clf.arguments)`` is an unfitted twin."""
        return {name: getattr(self, name) for name in ARGUMENTS}

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
        """Fit on one or several sections, of which some spots are labelled.

        Unlabelled spots help the encoders and the neighbourhoods. ``data`` is not changed.

        Parameters
        ----------
        data
            AnnData or SpatialData object with images (or crops), raw counts, or both.
        labels_key
            Labels in ``obs``; missing for unlabelled spots.
        layer
            Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
        library_key, donor_key
            Columns of ``obs`` that name the section and, where there is one, the donor: inner folds keep a donor's
            sections together.
        spatial_key
            ``obsm`` key of the full-resolution pixel coordinates.
        table_key
            Table of a SpatialData object.

        Returns
        -------
        The fitted classifier.

        Raises
        ------
        KeyError
            There is no column of labels.
        ValueError
            No label, a single region, or neither image nor counts.
        """
        labels = masked_labels(get_table(data, table_key), labels_key)
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        return self._fit_fusion(*self._fit_chain(data, donor_key, **keys), labels, donor_key=donor_key)

    def _fit_chain(
        self, data: AnnData | SpatialData, donor_key: str, **keys: Any
    ) -> tuple[AnnData, dict[str, np.ndarray]]:
        """Cut, fit the encoders, and return the light table and its features."""
        self.classes = None  # not fitted again until all is done
        require_donors(get_table(data, keys["table_key"]), donor_key)
        light, self._sizes = self._light(data, self.crop_um, self.out_px, MODALITIES, **keys)
        self._px = {key: int(light.obsm[key].shape[1]) for key in self._sizes}
        features = with_context(light, self._fit_encoders(light), self.n_rings)
        self._novelty = NoveltyCheck.fit(self._encoders, light, self.random_state, donor_key=donor_key)
        return light, features

    def _light(
        self, data: Any, crop_um: Any, out_px: int | Mapping[str, int], modalities: Sequence[str], **keys: Any
    ) -> tuple[AnnData, dict]:
        asked = {"image": self.image is not None and "image" in modalities,
                 "genes": self.genes is not None and "gene" in modalities}  # fmt: skip
        needed = self.image.crops_keys if isinstance(self.image, ImageEncoder) else None
        return light_table(data, crop_um=crop_um, out_px=out_px, crops_keys=needed, **asked, **keys)

    def _new_encoders(self, light: AnnData) -> dict[str, Any]:
        """Return encoders for the modalities that the table has, not fitted but for one that was given."""
        names = ("image", "genes", "image_options", "gene_options", "random_state")
        return new_encoders(light, self._sizes, **{name: getattr(self, name) for name in names})

    def _fit_encoders(self, light: AnnData) -> dict[str, np.ndarray]:
        """Fit the encoders and return the embeddings of the table they were fitted on."""
        self._encoders = self._new_encoders(light)
        self.sections_seen = list(dict.fromkeys([*getattr(self.image, "sections_seen", ()), *sections(light)]))
        return fit_all(self._encoders, light)

    def _fit_fusion(
        self,
        light: AnnData,
        features: Mapping[str, np.ndarray],
        labels: pd.Series,
        *,
        donor_key: str = _keys.DONOR,
        memory: dict | None = None,
    ) -> Self:
        """Fit the head on the labelled rows of already encoded sections; ``memory`` as for `fit_members`."""
        self._located, section = _keys.SPATIAL in light.obsm, light.obs[_keys.LIBRARY].to_numpy()
        tell_labels_seen(getattr(self.image, "labels_seen", ()), section[labels.notna().to_numpy()])
        groups = inner_groups(light, labels.notna().to_numpy(), n_rings=self.n_rings, donor_key=donor_key)
        self.inner_groups, self._fusion = groups.kind, self._new_fusion()
        self._fusion._memory = memory
        graph = self._neighbours(light, features, labels.notna().to_numpy())
        self._fusion.fit(features, labels.to_numpy(), groups=groups.of_row, positions=groups.positions, graph=graph)
        self._fusion._memory = None
        self.classes, self.history = self._fusion.classes, self._fusion.history
        return self

    def _neighbours(self, light: AnnData, features: Mapping[str, np.ndarray], among: np.ndarray | None = None) -> Graph:
        """Return what to smooth over; ``None`` where nothing is smoothed."""
        own = {name: own_values(values, self.rings_used) for name, values in features.items()}
        return answer_neighbours(self._fusion.smoothing, light, own, among=among)

    @property
    def rings_used(self) -> int:
        """Rings of neighbours whose means are among the features: none where training rows had no coordinates."""
        return self.n_rings if self._located else 0

    def _new_fusion(self) -> FusionClassifier:
        options = {"coverage": self.coverage, "random_state": self.random_state}
        return FusionClassifier(self.fusion, **options | self.fusion_options)

    def _features(self, light: AnnData) -> dict[str, np.ndarray]:
        """Embeddings with their neighbourhood, per modality that the table has; NaN rows lack it."""
        return with_context(light, embed_all(self._encoders, light, self._sizes), self.rings_used)

    def _encode(
        self, data: AnnData | SpatialData, modalities: Sequence[str] | str | None, **keys: Any
    ) -> tuple[AnnData, dict[str, np.ndarray]]:
        """Return the light table and its features of the modalities asked for, all that were fitted by default."""
        require_fitted(self, "classes")
        modalities = [modalities] if isinstance(modalities, str) else modalities or list(self._encoders)
        for name in modalities:
            require_choice(name, tuple(self._encoders), argument="modalities")
        light, _ = self._light(data, self._sizes, self._px, modalities, **keys)
        if self.rings_used:
            require_key(light.obsm, _keys.SPATIAL, where="adata.obsm", argument="spatial_key")
        return light, self._features(light)

    def predict_proba(
        self,
        data: AnnData | SpatialData,
        *,
        modalities: Sequence[str] | None = None,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Return calibrated probabilities, one row a spot, one column a region; ``data`` is not changed.

        Parameters
        ----------
        data
            Whole sections: standardisation and neighbourhoods use all their spots.
        modalities
            Use only these, ``"image"`` or ``"gene"``, even where both are there.
        layer, library_key, spatial_key, table_key
            As for :meth:`fit`.
        """
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        return self._predict(data, modalities, **keys)[1]

    def predict(
        self,
        data: AnnData | SpatialData,
        *,
        modalities: Sequence[str] | None = None,
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> pd.DataFrame:
        """Return the region of every spot, how sure, and whether to abstain; ``data`` is not changed.

        Parameters
        ----------
        data, modalities, layer, library_key, spatial_key, table_key
            As for :meth:`predict_proba`.

        Returns
        -------
        A DataFrame with one row a spot: ``predicted``, ``confidence`` (its probability), ``abstain``, ``modalities``
        (what it was predicted from, ``"gene+image"``; empty where the spot has neither), ``novelty`` (how unlike the
        training spots it is, 1 at the limit) and ``out_of_distribution`` (beyond it), see :meth:`novelty`.
        """
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        return self._predict(data, modalities, **keys)[0]

    def _predict(
        self, data: AnnData | SpatialData, modalities: Sequence[str] | None = None, **keys: Any
    ) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Return ``(predictions, probabilities, verdicts of novelty)`` from one pass through the encoders."""
        light, features = self._encode(data, modalities, **keys)
        spots, verdicts = self._novelty.apply(self._encoders, light)
        self._novelty.tell(verdicts)
        p, frame = self._fusion._predict(features, graph=self._neighbours(light, features))
        probability = pd.DataFrame(p, index=light.obs_names, columns=self.classes)
        return frame.set_index(light.obs_names).join(spots), probability, verdicts

    def modality_weights(self) -> pd.Series:
        """Return how much the combination of both trusts each modality (not for ``fusion="concat"``)."""
        require_fitted(self, "classes")
        return self._fusion.modality_weights()
