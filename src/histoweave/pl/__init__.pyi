from ._alignment import alignment as alignment
from ._crops import crops as crops
from ._embedding import embedding as embedding
from ._evaluation import confusion as confusion
from ._evaluation import reliability as reliability
from ._evaluation import scores as scores
from ._regions import regions as regions
