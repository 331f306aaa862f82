"""The weights' own preprocessing, from timm's configuration, split so that worker processes hand over small uint8 images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision.transforms.functional import to_pil_image

from densefeat.errors import UsageError


@dataclass(frozen=True)
class Preprocessing:
    """timm's evaluation transform in numbers: resize and crop to ``(size, size)``, then ``(x / 255 - mean) / std``."""

    size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, model: nn.Module, image_size: int | None = None) -> "Preprocessing":
        """What a model's ``pretrained_cfg`` says, at another size if given (pixels, at least 32)."""
        config = resolve_model_data_config(model)
        channels, height, width = config["input_size"]
        channels = getattr(model, "in_chans", channels)
        if image_size is not None and image_size < 32:
            raise UsageError(f"image size {image_size}: the networks need at least 32 pixels")
        if image_size is None and height != width:
            raise UsageError(f"the model's input is {height}×{width}: only square inputs are prepared here, name an image size")
        if channels != 3:
            raise UsageError(f"the model reads {channels} channels: hand it float tensors (N, {channels}, H, W) of your own")
        return cls(
            size=image_size or height,
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    def geometry(self) -> Callable[[Image.Image], torch.Tensor]:
        """RGB image to uint8 ``(3, size, size)``: the part for worker processes; picklable."""
        return create_transform(
            input_size=(3, self.size, self.size),
            is_training=False,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 ``(N, 3, H, W)`` to float32, on the device that the pixels are on."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return pixels.float().div_(255).sub_(mean).div_(std)

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def tensor_to_image(tensor: torch.Tensor) -> Image.Image:
    """uint8 ``(3, H, W)`` to an RGB image."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] != 3:
        raise UsageError(f"image tensor of shape {tuple(tensor.shape)} and {tensor.dtype}: pass uint8 (3, H, W)")
    return to_pil_image(tensor.cpu())
