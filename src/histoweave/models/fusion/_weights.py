"""What a fitted fusion classifier tells about how it weighs its modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from histoweave.models._base import require_fitted
from histoweave.models.fusion._members import modality_of


class TellsWeights:
    """Weights of modalities, for a :class:`FusionClassifier`."""

    def spot_weights(
        self, features: Mapping[str, np.ndarray], *, modalities: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Return the weight of every modality at every row, for ``method="gated"``.

        Parameters
        ----------
        features, modalities
            As for :meth:`predict_proba`.

        Returns
        -------
        A DataFrame with one column a modality. A row's weights sum to 1; a modality that it lacks has 0, and a row
        without any is NaN.
        """
        if self.method != "gated":
            msg = f"`spot_weights` needs `method='gated'`, this classifier has {self.method!r}."
            raise ValueError(msg)
        n, parts = self._parts(features, modalities)
        weights = pd.DataFrame(np.nan, index=range(n), columns=self.modalities)
        for chosen, rows, said in parts:
            weights.loc[rows] = 0.0
            combination = self._combinations[chosen]
            gated = combination.pool.spot_weights(said) if combination.gated else 1 / len(chosen)
            weights.loc[rows, list(chosen)] = gated
        return weights

    def modality_weights(self) -> pd.Series:
        """Return how much each modality moves the answer of the full combination.

        For ``method="gated"`` the mean of its weights out of fold. For ``"stack"`` the sum over its heads of weight
        times spread of the log-probabilities out of fold: a head that the pool does not trust and a head that says
        the same of every class both count nothing. Not for ``"concat"`` and ``"cross_attention"``, whose heads see
        all modalities at once.
        """
        require_fitted(self, "classes")
        if self._joint:
            msg = (
                f"`modality_weights` needs `method='stack'` or `'gated'`: heads of {self.method!r} see all modalities "
                "at once."
            )
            raise ValueError(msg)
        chosen = max(self._combinations, key=len)
        if self._combinations[chosen].gated:
            index = pd.Index(chosen, name="modality")
            return pd.Series(self._combinations[chosen].pool.mean, index=index, name="weight")
        modality = pd.Index([modality_of(name) for name in self._members_of(chosen)], name="modality")
        return pd.Series(self._combinations[chosen].evidence, index=modality, name="weight").groupby(level=0).sum()
