from .fusion import FusionClassifier
from .gene_autoencoder import GenePCA
from .image_encoder import ImageEncoder
from .region_classifier import RegionClassifier
