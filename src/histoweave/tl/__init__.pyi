from ._cross_validate import cross_validate as cross_validate
from ._encoders import gene_encoder as gene_encoder
from ._encoders import image_encoder as image_encoder
from ._evaluate import evaluate as evaluate
from ._fusion import fusion_classifier as fusion_classifier
from ._gene_programmes import gene_programmes as gene_programmes
from ._impute import impute as impute
from ._predict import predict_regions as predict_regions
