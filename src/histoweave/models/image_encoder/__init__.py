"""Image encoders: crops in, embeddings out."""

from histoweave.models.image_encoder._model import ImageEncoder

__all__ = ["ImageEncoder"]
