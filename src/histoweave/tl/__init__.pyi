from ._cross_validate import cross_validate
from ._encoders import gene_encoder, image_encoder
from ._evaluate import evaluate
from ._fusion import fusion_classifier
from ._predict import predict_regions
