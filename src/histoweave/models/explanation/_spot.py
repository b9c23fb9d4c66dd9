"""Why one spot got its region: what of its image and which of its genes moves the classifier's own answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import nn

from histoweave import _keys
from histoweave._resolve import sections
from histoweave.models.explanation._attribution import choose_layers, grad_cam, prepared
from histoweave.models.explanation._contribution import logarithm
from histoweave.models.gene_autoencoder._apply import Applied
from histoweave.models.gene_autoencoder._finetune import LinearEncoder
from histoweave.models.gene_autoencoder._views import Views
from histoweave.models.image_encoder._module import set_scale
from histoweave.models.region_classifier import RegionClassifier


@dataclass(frozen=True)
class Spot:
    """One spot of a section, as a classifier sees it.

    Attributes
    ----------
    model
        The fitted classifier.
    light
        The light table of the whole section or sections.
    features
        What the classifier is asked with, per modality ``(n, d)``: the embedding and the neighbourhood's.
    row
        Number of the spot.
    region
        Number of the region that is explained.
    """

    model: RegionClassifier
    light: AnnData
    features: Mapping[str, np.ndarray]
    row: int
    region: int

    def log_probability(self, modality: str, own: np.ndarray) -> np.ndarray:
        """Return the log probability of the region were the spot's own embedding one of ``own`` ``(n, d)``.

        The neighbourhood's embedding and the other modality stay.
        """
        asked = {name: np.repeat(block[[self.row]], len(own), axis=0) for name, block in self.features.items()}
        asked[modality] = asked[modality].copy()
        asked[modality][:, : own.shape[1]] = own
        return logarithm(self.model._fusion.predict_proba(asked)[:, self.region])

    def hidden_cells(self, crops_key: str, n_cells: int) -> np.ndarray:
        """Return by how much the log probability falls when a cell of the crop is hidden ``(n_cells, n_cells)``.

        Hidden in the crop's mean colour, in this scale alone (Zeiler and Fergus, 2014).
        """
        encoder = self.model._encoders["image"]
        crops = {key: np.asarray(self.light.obsm[key][self.row])[None] for key in encoder.crops_keys}
        own = crops[crops_key][0]
        variants = np.repeat(own[None], n_cells**2 + 1, axis=0)  # the last one stays whole
        edges = [[round(i * side / n_cells) for i in range(n_cells + 1)] for side in own.shape[:2]]
        colour = own.reshape(-1, 3).mean(axis=0).round().astype(own.dtype)
        for number, (i, j) in enumerate(np.ndindex(n_cells, n_cells)):
            variants[number, edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]] = colour
        obs = pd.DataFrame(index=[str(i) for i in range(len(variants))])
        table = AnnData(obs=obs, obsm={key: np.repeat(c, len(variants), axis=0) for key, c in crops.items()})
        table.obsm[crops_key] = variants
        here = next(rows for rows in sections(self.light).values() if self.row in rows)
        values = encoder.features_as_in(encoder.features(table), encoder.features(self.light)[here])
        found = self.log_probability("image", values)
        return (found[-1] - found[:-1]).reshape(n_cells, n_cells)

    def grad_cam(self, crops_key: str, device: str) -> np.ndarray:
        """Return Grad-CAM of the region's logit in the classifier's linear head of the image ``(h, w)``."""
        encoder = self.model._encoders["image"]
        network = prepared(ImageHead(self.model, crops_key), device)
        crop = np.asarray(self.light.obsm[crops_key][self.row])
        picture = torch.from_numpy(crop).to(device).permute(2, 0, 1)[None].float() / 255
        set_scale(network, encoder.crops_keys.index(crops_key))
        layer = choose_layers(network, crop.shape[:2], None)[0]
        return grad_cam(network, picture, torch.tensor([self.region], device=device), layer=layer)[0].cpu().numpy()

    def hidden_genes(self) -> pd.DataFrame:
        """Return by how much the log probability falls when a gene is put at the section's mean, best first.

        One row a gene that is not at the mean: ``gene``, ``contribution``, ``value`` (log-normalised, less the mean).
        """
        encoder = self.model._encoders["gene"]
        expression = encoder._aligned(self.light, None, _keys.LIBRARY, quiet=True)
        views = Views(encoder, expression, [])
        x = views.batch(np.array([self.row]))[0]
        genes = torch.nonzero(views.present & (x[0] != 0)).ravel()
        variants = torch.cat([x.repeat(len(genes), 1), x])  # the last one stays whole
        variants[torch.arange(len(genes)), genes] = 0
        if isinstance(encoder, Applied):
            around = views.around(np.array([self.row]))
            around = None if around is None else around.expand(len(variants), -1)
            hidden = torch.zeros((1, len(encoder.genes)), dtype=torch.bool, device=views.device)
            values = encoder._embed_batch(variants, views.present, around, hidden)
        else:
            values = LinearEncoder(encoder._map)(variants, views.present).cpu().numpy()
        found = self.log_probability("gene", values)
        genes = genes.cpu().numpy()
        frame = pd.DataFrame({"gene": np.asarray(encoder.genes)[genes], "contribution": found[-1] - found[:-1],
                              "value": x[0].cpu().numpy()[genes]})  # fmt: skip
        return frame.sort_values("contribution", ascending=False, kind="stable", ignore_index=True)


class ImageHead(nn.Module):
    """The network of one scale under the linear head that the classifier has on its images.

    Constants of the logits are left out: they have no gradient.
    """

    def __init__(self, model: RegionClassifier, crops_key: str) -> None:
        super().__init__()
        encoder, head = model._encoders["image"], model._fusion._members["image:linear"]
        self.backbone = encoder._network
        to_own = np.eye(len(encoder._scaler.sd)) if encoder._map is None else encoder._map.weights()
        weight = (head.coef / head.sd)[:, : len(to_own)] @ to_own / encoder._scaler.sd
        width = encoder._network.dim
        first = encoder.crops_keys.index(crops_key) * width
        self.register_buffer("weight", torch.from_numpy(weight[:, first : first + width].astype(np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn pictures ``(n, 3, height, width)`` in 0..1 into logits ``(n, n_classes)``."""
        return self.backbone.encode(x) @ self.weight.T
