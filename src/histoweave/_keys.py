"""Every default key, in one frozen place. Public functions let each be overridden by keyword."""

from typing import Final

# obs
LIBRARY: Final = "library_id"  #: the section a row belongs to
DONOR: Final = "donor"  #: the patient or animal a section comes from
REGION: Final = "region"  #: labels; missing means unlabelled
FOLD: Final = "fold"
DOMAIN: Final = "domain"
SUGGESTED: Final = "suggested"
IN_TISSUE: Final = "in_tissue"
ARRAY_ROW: Final = "array_row"
ARRAY_COL: Final = "array_col"

# obsm
SPATIAL: Final = "spatial"  #: full-resolution pixel coordinates (x, y)
CROPS: Final = "crops"
CROPS_CONTEXT: Final = "crops_context"
CROPS_DETAIL: Final = "crops_detail"
X_IMAGE: Final = "X_image"
X_GENE: Final = "X_gene"
X_FUSED: Final = "X_fused"
GRAD_CAM: Final = "grad_cam"
CONTRIBUTION: Final = "modality_contribution"
EXPLAIN_SPOT: Final = "explain_spot"

# layers, obsp, uns
COUNTS: Final = "counts"
CONNECTIVITIES: Final = "spatial_connectivities"
UNS: Final = "histoweave"

# SpatialData
TABLE: Final = "table"

# what a classifier writes, after the labels key: obs["region_predicted"], obsm["region_probability"], ...
PREDICTED: Final = "_predicted"
CONFIDENCE: Final = "_confidence"
ABSTAIN: Final = "_abstain"
PROBABILITY: Final = "_probability"
WEIGHTS: Final = "_modality_weights"
NOVELTY: Final = "_novelty"
OUT_OF_DISTRIBUTION: Final = "_out_of_distribution"

# what an explanation writes, after its key: obs["grad_cam_class"], ...
EXPLAINED_CLASS: Final = "_class"
EXPLAINED_PROBABILITY: Final = "_probability"
LOG: Final = "_log"
