from ._alignment import check_alignment
from ._context import spatial_context
from ._crops import crops
from ._expression import expression
from ._image_qc import image_qc
from ._split import split
from ._stain import stain_normalize
