from . import datasets, io, metrics, models, pl, pp, tl
from ._settings import settings
