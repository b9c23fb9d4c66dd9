from ._concat import concat as concat
from ._convert import from_anndata as from_anndata
from ._convert import to_anndata as to_anndata
from ._image_folder import read_image_folder as read_image_folder
from ._labels import read_labels as read_labels
from ._st import read_st as read_st
from ._visium import read_visium as read_visium
