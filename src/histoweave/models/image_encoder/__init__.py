"""Image encoders: crops in, embeddings out."""

from histoweave.models.image_encoder._model import ImageEncoder
from histoweave.models.image_encoder._options import ImageTraining

__all__ = ["ImageEncoder", "ImageTraining"]
