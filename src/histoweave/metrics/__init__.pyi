from ._calibration import brier_score, expected_calibration_error, log_loss, reliability_curve
from ._classification import classification, per_class
from ._clustering import clustering
