"""Random views of image crops, a batch at a time: one geometric pass and one colour transform a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from histoweave._validate import listing, require_number

# Ruifrok & Johnston (2001): optical density of haematoxylin, eosin and DAB in red, green and blue, one stain a row.
STAINS = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS = STAINS / STAINS.norm(dim=1, keepdim=True)
LUMINANCE = torch.tensor([0.299, 0.587, 0.114])
WHITE = math.log(256.0)  # optical density is WHITE - log(value + 1)
CACHED = 2**15  # pixels worked on at a time on a CPU: larger pieces leave the processor's cache


@dataclass(frozen=True)
class Augmentation:
    """Ranges that random views are drawn from.

    Parameters
    ----------
    scale
        Smallest and largest share of the picture's area that a view shows; views keep the picture's size.
    rotation
        Largest angle in degrees; what lies outside the picture is its reflection.
    flip
        Mirror half of the views.
    stain
        HED jitter (Tellez et al., 2018): the density of each stain is multiplied by ``1 +- stain`` and moved by
        up to ``stain``. ``None`` for pictures that are not stained; colours then change in RGB, and else
        in optical density.
    brightness, contrast, saturation
        Factors are drawn from ``1 +- value``.
    grey
        Share of views without colour.
    blur, blur_sigma
        Share of views that are blurred, and the range of the standard deviation as a share of the side.
    noise
        Largest standard deviation of Gaussian noise, in units of the full range.
    """

    scale: tuple[float, float] = (0.4, 1.0)
    rotation: float = 180.0
    flip: bool = True
    stain: float | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.002, 0.016)
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "blur_sigma"):
            low, high = getattr(self, name)
            require_number(low, argument=f"{name}[0]", above=0, at_most=high)
            require_number(high, argument=f"{name}[1]", at_most=1)
        require_number(self.rotation, argument="rotation", at_least=0, at_most=180)
        for name in ("brightness", "contrast", "saturation", "noise", *(("stain",) if self.stain is not None else ())):
            require_number(getattr(self, name), argument=name, at_least=0, below=1)
        for name in ("grey", "blur"):
            require_number(getattr(self, name), argument=name, at_least=0, at_most=1)


PRESETS = {
    "histology": Augmentation(stain=0.15, brightness=0.1, saturation=0.2, grey=0.1, blur=0.2),
    "radiograph": Augmentation(
        scale=(0.5, 1.0), rotation=10, flip=False, brightness=0.2, contrast=0.2, blur=0.2, noise=0.02
    ),  # left and right matter, and there is no stain
    "light": Augmentation(scale=(0.8, 1.0), stain=0.05),
}


def augmentation(preset: str | Augmentation) -> Augmentation:
    """Return the augmentation of a preset's name, or the augmentation itself."""
    if isinstance(preset, Augmentation):
        return preset
    if preset not in PRESETS:
        msg = f"`augmentation` must be one of {listing(PRESETS)} or an `Augmentation`, got {preset!r}."
        raise ValueError(msg)
    return PRESETS[preset]


@dataclass(frozen=True)
class Parameters:
    """What is done to each of ``n`` pictures.

    Parameters
    ----------
    affine
        From places in the view to places in the picture, both in -1..1, ``(n, 2, 3)``.
    matrix, offset
        Colour transform ``(n, 3, 3)`` and ``(n, 3, 1)``, in RGB of 0..1 or in optical density (natural logarithm).
    density
        Whether colours change in optical density.
    sigma
        Blur ``(n,)`` on the CPU, as a share of the side; 0 for none.
    noise, noise_seed
        Standard deviation ``(n,)``, and the seed of the batch's noise.
    """

    affine: torch.Tensor
    matrix: torch.Tensor
    offset: torch.Tensor
    density: bool
    sigma: torch.Tensor
    noise: torch.Tensor
    noise_seed: int

    def __getitem__(self, rows: slice) -> Parameters:
        """Return the parameters of some of the pictures."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Parameters(**{k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in values.items()})


def sample_parameters(
    aug: Augmentation, n: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Parameters:
    """Draw the parameters of ``n`` views.

    Parameters
    ----------
    aug
        The ranges.
    n
        How many.
    generator
        A CPU generator: views are the same whatever device they are made on. The global one is not used.
    device
        Where the pictures are.
    """
    draws = torch.rand(12, n, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    signed = 2 * draws - 1
    density = aug.stain is not None
    matrix, offset = torch.eye(3).repeat(n, 1, 1), torch.zeros(n, 3, 1)
    if density:
        jitter = torch.rand(2, n, 3, generator=generator) * 2 - 1
        unmix = torch.linalg.inv(STAINS)
        matrix = STAINS.T @ torch.diag_embed(1 + aug.stain * jitter[0]) @ unmix.T
        offset = (aug.stain * jitter[1] @ STAINS)[..., None]
    factors = [
        1 + value * draw
        for value, draw in zip((aug.brightness, aug.contrast, aug.saturation), signed[5:8], strict=True)
    ]
    tone, shift = _tone(*factors, draws[8] < aug.grey, density)
    low, high = aug.blur_sigma
    sigma = (low + (high - low) * draws[9]) * (draws[10] < aug.blur)
    return Parameters(
        affine=_geometry(aug, draws, signed).to(device),
        matrix=(tone @ matrix).to(device),
        offset=(tone @ offset + shift).to(device),
        density=density,
        sigma=sigma,
        noise=(aug.noise * draws[11]).to(device),
        noise_seed=seed,
    )


def _geometry(aug: Augmentation, draws: torch.Tensor, signed: torch.Tensor) -> torch.Tensor:
    """Rotate and mirror a window of the drawn area that lies within the picture."""
    low, high = aug.scale
    side = (low + (high - low) * draws[0]).sqrt()
    angle = math.radians(aug.rotation) * signed[1]
    mirror = torch.where((draws[2] < 0.5) & aug.flip, -1.0, 1.0)
    cos, sin = side * angle.cos(), side * angle.sin()
    centre = (1 - side) * signed[3:5]
    rows = torch.stack([cos * mirror, -sin, centre[0], sin * mirror, cos, centre[1]])
    return rows.T.reshape(-1, 2, 3)


def _tone(
    brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor, grey: torch.Tensor, density: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix and offset of brightness, contrast and saturation; contrast keeps white glass, or mid-grey, in place."""
    weights = torch.full((3,), 1 / 3) if density else LUMINANCE
    saturation = torch.where(grey, 0.0, saturation)[:, None, None]
    matrix = saturation * torch.eye(3) + (1 - saturation) * weights.expand(3, 3)
    if density:
        return contrast[:, None, None] * matrix, -brightness.log()[:, None, None].expand(-1, 3, 1)
    scale = contrast * brightness
    return scale[:, None, None] * matrix, (0.5 * (1 - contrast))[:, None, None].expand(-1, 3, 1)


def augment(images: torch.Tensor, params: Parameters) -> torch.Tensor:
    """Make one view of every picture.

    Parameters
    ----------
    images
        ``(n, height, width, 3)`` uint8, or ``(n, 3, height, width)`` float in 0..1.
    params
        Of as many views, on the same device.

    Returns
    -------
    ``(n, 3, height, width)`` float32 in 0..1.
    """
    eight_bit = images.dtype == torch.uint8
    if images.ndim != 4 or images.shape[3 if eight_bit else 1] != 3 or len(images) != len(params.affine):
        msg = (
            f"`images` must be {len(params.affine)} RGB pictures, (n, height, width, 3) uint8 or (n, 3, height, width) "
            f"float, got {tuple(images.shape)} {images.dtype}."
        )
        raise ValueError(msg)
    n, height, width = len(images), *(images.shape[1:3] if eight_bit else images.shape[2:])
    out = torch.empty(n, 3, height, width, device=images.device)
    y, x = ((2 * torch.arange(size, device=images.device) + 1) / size - 1 for size in (height, width))  # pixel centres
    base = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(height, width, device=images.device)]).flatten(
        1
    )
    # rotations turn pixels, which lie closer along the longer side when both sides go from -1 to 1
    affine = params.affine * params.affine.new_tensor([[1, height / width, 1], [width / height, 1, 1]])
    matrix, offset = _on_values(params)
    step = max(1, CACHED // (height * width)) if images.device.type == "cpu" else n
    for start in range(0, n, step):
        part = slice(start, start + step)
        x = images[part]
        x = x.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) if eight_bit else x * 255
        grid = (affine[part].flatten(0, 1) @ base).view(-1, 2, height, width).permute(0, 2, 3, 1)
        x = F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=False)
        if params.density:
            x = x.add_(1).log_()
        colours = out[part].view(-1, 3, height * width)
        torch.baddbmm(offset[part], matrix[part], x.flatten(2), out=colours)
        if params.density:
            colours.exp_().sub_(1 / 255)
        colours.clamp_(0, 1)
    _blur(out, params.sigma)
    return _add_noise(out, params)


def _on_values(params: Parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the colour transform for values of 0..255, or their logarithms, instead of 0..1 or densities."""
    if not params.density:
        return params.matrix / 255, params.offset
    white = WHITE * (1 - params.matrix.sum(dim=2, keepdim=True))
    return params.matrix, white - params.offset - math.log(255)


def _blur(images: torch.Tensor, sigma: torch.Tensor) -> None:
    """Blur those pictures, in place, whose ``sigma`` is above zero."""
    rows = torch.nonzero(sigma)[:, 0]
    if not len(rows):
        return
    side = max(images.shape[2:])
    radius = min(math.ceil(3 * float(sigma.max()) * side), min(images.shape[2:]) - 1)
    x = images[rows.to(images.device)]
    reach = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (reach / (sigma[rows, None] * side)) ** 2)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(images.device).repeat_interleave(3, dim=0)
    x = F.pad(x, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(x, weights[:, None, :, None], groups=weights.shape[0])
    x = F.conv2d(x, weights[:, None, None, :], groups=weights.shape[0])
    images[rows.to(images.device)] = x.view(len(rows), 3, *images.shape[2:])


def _add_noise(images: torch.Tensor, params: Parameters) -> torch.Tensor:
    if not params.noise.any():
        return images
    generator = torch.Generator(device=images.device).manual_seed(params.noise_seed)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images.addcmul_(noise, params.noise[:, None, None, None]).clamp_(0, 1)
