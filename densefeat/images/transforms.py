"""The preprocessing that weights need, from timm's configuration: workers resize uint8 images, the device normalises."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision.transforms import Compose, Resize, v2
from torchvision.transforms.functional import to_pil_image

from densefeat.errors import UsageError

_NATIVE_RESIZES = ("bilinear", "bicubic")  # of uint8 tensors, without a conversion to floats


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
    def for_model(cls, model: nn.Module, image_size: int | None = None) -> "Preprocessing":
        """Read a model's ``pretrained_cfg``; ``image_size``: another size of the input, at least 32 pixels."""
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

    def geometry(self) -> "Geometry":
        """Return the part for workers: resize and crop."""
        steps = create_transform(
            input_size=(3, self.size, self.size),
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,  # the colour of borders
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )
        if self.crop_mode == "border" or self.interpolation not in _NATIVE_RESIZES:
            return Geometry(steps, None)
        tensor_steps = [v2.Resize(s.size, s.interpolation) if isinstance(s, Resize) else s for s in steps.transforms]
        return Geometry(steps, Compose(tensor_steps))

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert uint8 ``(N, 3, H, W)`` to normalised float32, on the device of the pixels."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return pixels.float().div_(255).sub_(mean).div_(std)

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Geometry:
    """Resizing and cropping of RGB images and uint8 tensors ``(3, H, W)`` to contiguous uint8 ``(3, size, size)``.

    The result for images equals timm's evaluation transform bit for bit. Tensors are resized by torchvision, several times as
    fast; on photographs the results differ very little (``benchmarks/extract.py``), and more where Pillow, from version 13 on,
    resizes a tall image's columns first. Where torchvision lacks a step (borders, filters other than bilinear and bicubic)
    tensors are converted to images. Picklable, safe in threads.
    """

    image_steps: Compose
    tensor_steps: Compose | None

    def __call__(self, pixels: Image.Image | torch.Tensor) -> torch.Tensor:
        if isinstance(pixels, Image.Image):
            steps = self.image_steps
        elif self.tensor_steps is None:
            steps, pixels = self.image_steps, to_pil_image(pixels)
        else:
            steps = self.tensor_steps
        return steps(pixels).contiguous()
