from ._calibration import brier_score as brier_score
from ._calibration import expected_calibration_error as expected_calibration_error
from ._calibration import log_loss as log_loss
from ._calibration import reliability_curve as reliability_curve
from ._classification import classification as classification
from ._classification import per_class as per_class
from ._clustering import clustering as clustering
from ._imputation import imputation as imputation
