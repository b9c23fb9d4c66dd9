from ._alignment import alignment
from ._crops import crops
from ._embedding import embedding
from ._evaluation import confusion, reliability, scores
from ._regions import regions
