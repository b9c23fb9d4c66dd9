from ._concat import concat
from ._convert import from_anndata, to_anndata
from ._image_folder import read_image_folder
from ._labels import read_labels
from ._st import read_st
from ._visium import read_visium
