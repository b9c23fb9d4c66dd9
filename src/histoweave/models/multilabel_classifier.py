"""Several yes-or-no findings of every spot, from one pass through the encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from histoweave import _keys
from histoweave._resolve import get_table
from histoweave._validate import listing, require_key, warn
from histoweave.metrics._multilabel import findings
from histoweave.models._base import Arrays, Model, prefixed, require_fitted, subset
from histoweave.models.fusion import FusionClassifier
from histoweave.models.region_classifier import RegionClassifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

PRESENT, ABSENT = "present", "absent"


class MultiLabelClassifier(Model):
    """Learn findings that a spot may have none, one or several of, and map each of them.

    One fusion classifier a finding, on the same embeddings: what is known of one finding does not have to be known of
    the others, and every probability is calibrated by itself (binary relevance, Tsoumakas & Katakis, 2007).

    Parameters
    ----------
    chain
        A :class:`RegionClassifier` whose arguments to use; it is not fitted itself.

    Attributes
    ----------
    findings
        Names of the findings, in the order of the columns of predictions.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> region = sections.obs["region"].astype(str)
    >>> sections.obsm["findings"] = region.str.get_dummies().iloc[:, :2].astype(float)
    >>> clf = hw.models.MultiLabelClassifier(hw.models.RegionClassifier(image=None)).fit(sections)
    >>> clf.predict_proba(sections).shape
    (300, 2)
    """

    def __init__(self, chain: RegionClassifier | None = None) -> None:
        self.chain = RegionClassifier(**({} if chain is None else chain.arguments))
        self.findings: list[str] | None = None

    @property
    def sections_seen(self) -> list[str]:
        """Sections whose pixels or counts were seen in ``fit``, labelled or not."""
        require_fitted(self, "findings")
        return self.chain.sections_seen

    @property
    def history(self) -> pd.DataFrame:
        """Scores on inner folds per finding and subset of modalities (a DataFrame)."""
        require_fitted(self, "findings")
        parts = {name: model.history for name, model in self._fusion.items()}
        return pd.concat(parts, names=["finding"]).reset_index(level=0).reset_index(drop=True)

    def fit(
        self,
        data: AnnData | SpatialData,
        *,
        labels_key: str = "findings",
        layer: str | None = None,
        library_key: str = _keys.LIBRARY,
        donor_key: str = _keys.DONOR,
        spatial_key: str = _keys.SPATIAL,
        table_key: str = _keys.TABLE,
    ) -> Self:
        """Fit on one or several sections, of which some spots were looked at; ``data`` is not changed.

        Parameters
        ----------
        data
            AnnData or SpatialData object with images (or crops), raw counts, or both.
        labels_key
            ``obsm`` key of the findings ``(n_obs, k)``: 1 where a spot has one, 0 where not, missing where nobody
            looked. Column names of a DataFrame name them.
        layer, library_key, donor_key, spatial_key, table_key
            As for :meth:`RegionClassifier.fit`.

        Returns
        -------
        The fitted classifier. Findings that no spot has, or every spot that was looked at, are left out with a warning.

        Raises
        ------
        KeyError
            There are no findings under that key.
        ValueError
            Values that are neither 0, 1 nor missing; no finding that some spots have and others have not.
        """
        table = get_table(data, table_key)
        require_key(table.obsm, labels_key, where="adata.obsm", argument="labels_key")
        known = findings(table.obsm[labels_key], argument=f"adata.obsm[{labels_key!r}]").set_index(table.obs_names)
        told = [name for name in known if known[name].nunique() == 2]
        if not told:
            msg = f"No finding of {listing(known.columns)} is there in some spots and absent in others. Label more."
            raise ValueError(msg)
        if len(told) < known.shape[1]:
            warn(f"Left out, because all spots looked at are alike in them: {listing(known.columns.difference(told))}.")
        self.findings = None  # not fitted again until all is done
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        light, features = self.chain._fit_chain(data, donor_key, **keys)
        self._fusion: dict[str, FusionClassifier] = {}
        for name in told:
            labels = known[name].map({1.0: PRESENT, 0.0: ABSENT}).astype(object)
            self._fusion[name] = self.chain._fit_fusion(light, features, labels, donor_key=donor_key)._fusion
        self.findings = told
        return self

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
        """Return the probability of every finding, one row a spot; missing for spots without image and counts.

        Parameters
        ----------
        data, modalities, layer, library_key, spatial_key, table_key
            As for :meth:`RegionClassifier.predict_proba`.
        """
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        return self.predict(data, modalities=modalities, **keys).xs("probability", axis=1, level=1)

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
        """Return for every finding whether a spot has it, how probable that is, and whether to abstain.

        Parameters
        ----------
        data, modalities, layer, library_key, spatial_key, table_key
            As for :meth:`RegionClassifier.predict`.

        Returns
        -------
        A DataFrame with one row a spot and columns of two levels: the finding, and ``predicted`` (missing for spots
        without image and counts), ``probability`` (that the spot has it) and ``abstain``.
        """
        require_fitted(self, "findings")
        keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
        light, features = self.chain._encode(data, modalities, **keys)
        found, graph = {}, self.chain._neighbours(light, features)
        for name, model in self._fusion.items():
            p, prediction = model._predict(features, graph=graph)
            predicted = prediction["predicted"].map({PRESENT: True, ABSENT: False}).astype("boolean")
            columns = {"predicted": predicted, "probability": p[:, model.classes.index(PRESENT)]}
            found[name] = pd.DataFrame(columns | {"abstain": prediction["abstain"]}).set_index(light.obs_names)
        return pd.concat(found, axis=1)

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        require_fitted(self, "findings")
        config, arrays = self.chain._state()
        config, arrays = {"chain": config, "findings": self.findings, "fusion": {}}, prefixed("chain", arrays)
        for number, (name, model) in enumerate(self._fusion.items()):
            config["fusion"][name], values = model._state()
            arrays |= prefixed(f"finding{number}", values)
        return config, arrays

    @classmethod
    def _from_state(cls, config: dict[str, Any], arrays: Arrays) -> Self:
        chain = RegionClassifier._from_state(config["chain"], subset("chain", arrays))
        model = cls(chain)
        model.chain, model.findings = chain, config["findings"]
        model._fusion = {
            name: FusionClassifier._from_state(state, subset(f"finding{number}", arrays))
            for number, (name, state) in enumerate(config["fusion"].items())
        }
        return model

    def _card(self) -> list[str]:
        return [f"- findings: {', '.join(self.findings)}", *self.chain._card()]
