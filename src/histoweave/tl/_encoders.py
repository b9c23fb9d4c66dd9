"""Fit an encoder on a table and write its embedding back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from histoweave import _keys
from histoweave._record import record
from histoweave._resolve import working_copy
from histoweave._validate import require_choice
from histoweave.models import GeneAutoencoder, GenePCA, ImageEncoder, ScviEncoder

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

PACKAGES = {
    "pca": ("scikit-learn",),
    "masked": ("torch", "lightning"),
    "scvi": ("torch", "scvi-tools"),
    "scanvi": ("torch", "scvi-tools"),
}
GENE_METHODS = tuple(PACKAGES)


def image_encoder(
    data: AnnData | SpatialData,
    *,
    method: str | Mapping[str, float] = "statistics",
    crops_key: str | Sequence[str] = _keys.CROPS,
    n_components: int | None = None,
    key_added: str = _keys.X_IMAGE,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    **options: Any,
) -> ImageEncoder:
    """Embed the image crops of every row.

    Parameters
    ----------
    data
        AnnData or SpatialData object with crops, see :func:`histoweave.pp.crops`.
    method
        ``"statistics"``: colour and texture statistics in stain space; ``"gene_regression"``: these, brought to
        expression where a table has both. ``"pretrained"``: a frozen network.
        Else a network trained on these crops: without labels (``"simclr"``, ``"vicreg"``, ``"simsiam"``,
        ``"byol"``, ``"inpaint"``, ``"colorize"``), by expression (``"gene_triplet"``, ``"gene_contrast"``), with
        labels (``"triplet"``, ``"supcon"``, ``"supervised"``), or several by their weights.
    crops_key
        Crops in ``obsm``; several scales are put side by side.
    n_components
        Principal components to keep. Default: all statistics, 64 for a network.
    key_added
        Name of the embedding in ``obsm``.
    random_state
        Seed.
    library_key
        Column of ``obs`` that names the section.
    table_key
        Table of a SpatialData object.
    options
        More arguments of :class:`histoweave.models.ImageEncoder` and of its training, such as ``backbone="resnet50"``
        or ``max_epochs=100``.

    Returns
    -------
    The fitted :class:`histoweave.models.ImageEncoder`. Writes ``obsm[key_added]`` (float32, standardised within
    each section; NaN for rows without crops) and ``uns["histoweave"][key_added]``.

    Raises
    ------
    KeyError
        There are no such crops.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.crops(adata)
    >>> encoder = hw.tl.image_encoder(adata)
    >>> adata.obsm["X_image"].shape
    (400, 92)
    """
    _, table = working_copy(data, table_key)
    arguments = {"n_components": n_components, "random_state": random_state} | options
    encoder = ImageEncoder(method, crops_keys=crops_key, **arguments)
    embedding = encoder.fit_embed(table, library_key=library_key)
    table.obsm[key_added] = embedding
    params = {"method": method, "crops_key": list(encoder.crops_keys), "n_components": encoder.n_components}
    if encoder.has_network:
        params |= {"backbone": encoder.backbone, "weights": encoder.weights, "statistics": encoder.statistics}
    if encoder.pretexts:
        params |= {"batch_size": encoder.batch_size} | encoder.training.to_dict()
    record(
        table,
        key_added,
        "tl.image_encoder",
        params,
        random_state=random_state,
        sections_seen=encoder.sections_seen,
        labels_seen=encoder.labels_seen,
        packages=("torch", "timm"),
    )
    return encoder


def gene_encoder(
    data: AnnData | SpatialData,
    *,
    method: str = "pca",
    n_components: int = 50,
    n_top_genes: int = 2000,
    layer: str | None = None,
    labels_key: str = _keys.REGION,
    key_added: str = _keys.X_GENE,
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    **options: Any,
) -> GenePCA | GeneAutoencoder | ScviEncoder:
    """Embed the expression of every row.

    Parameters
    ----------
    data
        AnnData or SpatialData object with raw counts.
    method
        ``"pca"``: principal components of log-normalised counts, centred within each section.
        ``"masked"``: a network trained to predict hidden genes, :class:`histoweave.models.GeneAutoencoder`.
        ``"scvi"``, ``"scanvi"``: :class:`histoweave.models.ScviEncoder`; needs the extra ``histoweave[scvi]``.
    n_components
        Dimensions of the embedding.
    n_top_genes
        Variable genes to use, where ``var["highly_variable"]`` does not mark them.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    labels_key
        Labels in ``obs`` that ``method="scanvi"`` learns from.
    key_added
        Name of the embedding in ``obsm``.
    random_state
        Seed.
    library_key
        Column of ``obs`` that names the section.
    table_key
        Table of a SpatialData object.
    options
        More arguments of the model, such as ``likelihood="nb"`` or ``masking="mixed"``.

    Returns
    -------
    The fitted model. Writes ``obsm[key_added]`` (float32; NaN for rows without
    counts) and ``uns["histoweave"][key_added]``.

    Raises
    ------
    ValueError
        The values are not raw counts.
    ImportError
        The method needs scvi-tools, which is not installed.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> encoder = hw.tl.gene_encoder(adata, n_components=20)
    >>> adata.obsm["X_gene"].shape
    (400, 20)
    """
    require_choice(method, GENE_METHODS, argument="method")
    _, table = working_copy(data, table_key)
    common = {"n_top_genes": n_top_genes, "random_state": random_state} | options
    if method == "pca":
        encoder = GenePCA(n_components, **common)
    elif method == "masked":
        encoder = GeneAutoencoder(n_components, **common)
    else:
        encoder = ScviEncoder(method, n_latent=n_components, **common)
    table.obsm[key_added] = encoder.fit_embed(table, labels_key=labels_key, layer=layer, library_key=library_key)
    params = {"method": method, "n_components": n_components, "n_top_genes": n_top_genes, "layer": layer} | options
    record(
        table,
        key_added,
        "tl.gene_encoder",
        params,
        random_state=random_state,
        sections_seen=encoder.sections_seen,
        labels_seen=encoder.labels_seen,
        packages=PACKAGES[method],
        n_genes=len(encoder.genes),
    )
    return encoder
