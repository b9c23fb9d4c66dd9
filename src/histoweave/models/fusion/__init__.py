"""Fusion of modalities on labelled rows: heads per block of features and a pool that weighs them."""

from histoweave.models.fusion._model import FusionClassifier

__all__ = ["FusionClassifier"]
