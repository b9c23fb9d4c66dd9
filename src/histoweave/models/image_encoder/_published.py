"""Networks for tissue that others have published, by name: what they are made of and how they want to be used.

Their hubs hold weights, and ask for arguments that only their cards tell. With these here, a network is built without
the hub: from a weights file that was carried over, and when a saved encoder is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
SIZE = 224  # pixels of the pictures that all were trained with, most at half a micrometre each
SCALED = {"init_values": 1e-5}  # layers with a scale of their own


@dataclass(frozen=True)
class Published:
    """A network on the hub.

    Parameters
    ----------
    repository
        Where its weights are.
    architecture, arguments
        timm's name, and arguments of its factory.
    gated
        Whether perceptrons have gates (SwiGLU).
    colours
        Mean and standard deviation that channels are brought to.
    with_patches
        Whether its features are the class token with the mean of the patches beside it, or the class token alone.
    """

    repository: str
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    gated: bool = False
    colours: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    with_patches: bool = False

    def create(self, *, pretrained: bool) -> nn.Module:
        """Build the network, with its weights from the hub or its cache, or with random ones."""
        import timm

        arguments = {"img_size": SIZE, "num_classes": 0, **self.arguments}
        if self.gated:
            arguments |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
        mean, sd = self.colours
        about = {
            "source": "hf-hub", "hf_hub_id": self.repository, "num_classes": 0, "mean": mean, "std": sd,
            "input_size": (3, SIZE, SIZE), "fixed_input_size": True,
        }  # fmt: skip
        return timm.create_model(self.architecture, pretrained=pretrained, pretrained_cfg_overlay=about, **arguments)


PUBLISHED = {
    # Chen et al. (2024). Towards a general-purpose foundation model for computational pathology. Nature Medicine.
    "uni": Published("MahmoodLab/UNI", "vit_large_patch16_224", SCALED),
    "uni2-h": Published("MahmoodLab/UNI2-h", "vit_giant_patch14_224", {
        **SCALED, "depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "no_embed_class": True,
        "reg_tokens": 8,
    }, gated=True),
    # Filiot et al. (2023). Scaling self-supervised learning for histopathology with masked image modeling. medRxiv.
    # The authors' repository holds another library's layout, this one the same weights in timm's.
    "phikon": Published("1aurent/vit_base_patch16_224.owkin_pancancer", "vit_base_patch16_224"),
    # Saillard et al. (2024). H-optimus-0. github.com/bioptimus/releases.
    **{name: Published(f"bioptimus/{name.replace('h', 'H')}", "vit_giant_patch14_reg4_dinov2", {
        **SCALED, "global_pool": "token",
    }, colours=BIOPTIMUS) for name in ("h-optimus-0", "h-optimus-1")},
    # Filiot et al. (2025). Distilling foundation models for robust and efficient models in digital pathology. MICCAI.
    "h0-mini": Published("bioptimus/H0-mini", "vit_base_patch14_reg4_dinov2", {
        **SCALED, "mlp_ratio": 5.33334, "global_pool": "",
    }, gated=True, colours=BIOPTIMUS, with_patches=True),
    # Vorontsov et al. (2024). A foundation model for clinical-grade computational pathology. Nature Medicine.
    "virchow": Published("paige-ai/Virchow", "vit_huge_patch14_224", {
        **SCALED, "mlp_ratio": 5.3375, "global_pool": "",
    }, gated=True, with_patches=True),
    # Zimmermann et al. (2024). Virchow2: scaling self-supervised mixed magnification models in pathology. arXiv.
    "virchow2": Published("paige-ai/Virchow2", "vit_huge_patch14_224", {
        **SCALED, "mlp_ratio": 5.3375, "global_pool": "", "reg_tokens": 4,
    }, gated=True, with_patches=True),
    # Xu et al. (2024). A whole-slide foundation model for digital pathology from real-world data. Nature.
    "prov-gigapath": Published("prov-gigapath/prov-gigapath", "vit_giant_patch14_dinov2", {
        **SCALED, "patch_size": 16, "global_pool": "token",
    }),
}  # fmt: skip
ALSO = {"owkin/phikon": "phikon"}  # other names


def published(name: str) -> Published | None:
    """Return what is known of a network by its name here or on the hub (``"hf-hub:MahmoodLab/UNI"``), if anything."""
    name = name.lower().replace("hf_hub:", "").replace("hf-hub:", "")
    by_repository = {found.repository.lower(): found for found in PUBLISHED.values()}
    return PUBLISHED.get(ALSO.get(name, name)) or by_repository.get(name)


def pool_tokens(tokens: torch.Tensor, n_prefix: int, *, with_patches: bool) -> torch.Tensor:
    """Turn tokens into features: the class token, with the mean of the patches if asked, or that alone without one.

    Parameters
    ----------
    tokens
        ``(n, tokens, d)``.
    n_prefix
        How many come before those of patches; the first of these is the class token.
    with_patches
        Put the mean of the patches beside the class token: ``2 d`` features.
    """
    patches = tokens[:, n_prefix:].mean(dim=1)
    if not n_prefix:
        return patches
    return torch.cat([tokens[:, 0], patches], dim=1) if with_patches else tokens[:, 0]
