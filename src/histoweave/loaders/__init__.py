"""Table rows to torch batches."""

from histoweave.loaders._crops import crop_batches, require_crops

__all__ = ["crop_batches", "require_crops"]
