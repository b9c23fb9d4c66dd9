"""A classifier of the features on held-out rows, to watch a training by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histoweave._random import rng
from histoweave.loaders import CropEpochs
from histoweave.models.image_encoder._backbone import Backbone
from histoweave.models.image_encoder._module import set_scale

HELD_OUT = 0.25  # share of the labelled rows
MOST = 2000  # rows that are embedded in every epoch
NEIGHBORS = 10


def hold_out(codes: np.ndarray, rows_of: Mapping[str, np.ndarray], random_state: int) -> np.ndarray:
    """Return which rows are held out ``(n,)``: whole sections where two or more have labels, else a part of each class.

    Parameters
    ----------
    codes
        Class numbers ``(n,)``, -1 for none.
    rows_of
        Rows of each section.
    random_state
        Seed of the choice.
    """
    generator, held = rng(random_state), np.zeros(len(codes), dtype=bool)
    parts = [rows[codes[rows] >= 0] for rows in rows_of.values()]
    parts = [rows for rows in parts if len(rows)]
    if len(parts) == 1:
        parts = [generator.permutation(np.flatnonzero(codes == c)) for c in np.unique(codes[codes >= 0])]
        held[np.concatenate([rows[: round(HELD_OUT * len(rows))] for rows in parts])] = True
        return held
    for i in generator.permutation(len(parts)):
        held[parts[i]] = True
        if held.sum() >= HELD_OUT * sum(map(len, parts)):
            return held
    return held


class Probe:
    """Score the features of a network.

    Parameters
    ----------
    kind
        ``"knn"``: vote of the 10 nearest rows by the cosine; ``"linear"``: logistic regression.
    crops
        Where the crops are read; those of the first kind are used.
    codes
        Class numbers ``(n,)``, -1 for none.
    held
        Which rows are held out ``(n,)``; of more than 2000 labelled rows, some are used.
    random_state
        Seed of that choice.

    Raises
    ------
    ValueError
        The rows on either side are too few.
    """

    def __init__(self, kind: str, crops: CropEpochs, codes: np.ndarray, held: np.ndarray, random_state: int) -> None:
        rows = np.sort(rng(random_state).permutation(np.flatnonzero(codes >= 0))[:MOST])
        self.crops, self.codes, self.rows, self.held = crops, codes[rows], rows, held[rows]
        known = self.held & np.isin(self.codes, self.codes[~self.held])
        if len(np.unique(self.codes[~self.held])) < 2 or not known.any():
            msg = (
                f"`probe={kind!r}` needs two classes to learn from beside rows of these to score; {self.held.sum()} of "
                f"{len(rows)} labelled rows are held out, {known.sum()} of a class that others have. Label more rows, "
                "or use `probe=None`."
            )
            raise ValueError(msg)
        linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        near = KNeighborsClassifier(min(NEIGHBORS, int((~self.held).sum())), metric="cosine")
        self.classifier = {"knn": near, "linear": linear}[kind]

    @torch.no_grad()
    def score(self, backbone: Backbone) -> float:
        """Return the balanced accuracy on the held-out rows."""
        training, device = backbone.training, backbone.mean.device
        set_scale(backbone.eval(), 0)
        values = [backbone(self.crops.read(rows).to(device)).float().cpu() for rows in np.array_split(self.rows, 8)]
        backbone.train(training)
        features = torch.cat(values).numpy()
        self.classifier.fit(features[~self.held], self.codes[~self.held])
        known = self.held & np.isin(self.codes, self.codes[~self.held])
        return float(balanced_accuracy_score(self.codes[known], self.classifier.predict(features[known])))
