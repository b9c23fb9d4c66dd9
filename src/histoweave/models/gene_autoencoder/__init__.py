"""Gene encoders: counts in, embeddings out."""

from histoweave.models.gene_autoencoder._classifier import GeneClassifier
from histoweave.models.gene_autoencoder._model import GeneAutoencoder
from histoweave.models.gene_autoencoder._pca import GenePCA
from histoweave.models.gene_autoencoder._scvi import ScviEncoder

ENCODERS = {"pca": GenePCA, "masked": GeneAutoencoder}  # those a whole chain may hold, by the name users give

__all__ = ["ENCODERS", "GeneAutoencoder", "GeneClassifier", "GenePCA", "ScviEncoder"]
