from ._alignment import check_alignment as check_alignment
from ._context import spatial_context as spatial_context
from ._crops import crops as crops
from ._expression import expression as expression
from ._image_qc import image_qc as image_qc
from ._split import split as split
from ._stain import stain_normalize as stain_normalize
