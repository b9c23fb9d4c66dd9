"""Image classifiers on few labels: an encoder's frozen features, its fine-tuned network, or one from scratch."""

from histoweave.models.image_classifier._model import ImageClassifier

__all__ = ["ImageClassifier"]
