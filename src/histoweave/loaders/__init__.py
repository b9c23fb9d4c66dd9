"""Table rows to torch batches."""

from histoweave.loaders._augment import Augmentation, augment, augmentation, sample_parameters
from histoweave.loaders._crops import crop_batches, require_crops
from histoweave.loaders._epochs import Batch, CropEpochs

__all__ = [
    "Augmentation",
    "Batch",
    "CropEpochs",
    "augment",
    "augmentation",
    "crop_batches",
    "require_crops",
    "sample_parameters",
]
