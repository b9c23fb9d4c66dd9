from .fusion import FusionClassifier as FusionClassifier
from .gene_autoencoder import GeneAutoencoder as GeneAutoencoder
from .gene_autoencoder import GeneClassifier as GeneClassifier
from .gene_autoencoder import GenePCA as GenePCA
from .gene_autoencoder import ScviEncoder as ScviEncoder
from .image_classifier import ImageClassifier as ImageClassifier
from .image_encoder import ImageEncoder as ImageEncoder
from .region_classifier import RegionClassifier as RegionClassifier
