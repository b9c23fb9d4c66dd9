"""Gene encoders: counts in, embeddings out."""

from histoweave.models.gene_autoencoder._model import GeneAutoencoder
from histoweave.models.gene_autoencoder._pca import GenePCA

__all__ = ["GeneAutoencoder", "GenePCA"]
