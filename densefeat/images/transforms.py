"""The preprocessing that weights need, from timm's configuration: workers resize images, the device normalises."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision.transforms import Compose, Resize, v2
from torchvision.transforms.functional import to_pil_image

from densefeat.base import is_number, shorten_text
from densefeat.errors import UsageError
from densefeat.images.channel_stats import ChannelStats
from densefeat.images.pixel_rule import PHOTOGRAPHS, PixelRule

MAX_SIDE = 2**13  # pixels of the image before it is cropped: 0.2 GB as RGB
_NATIVE_RESIZES = ("bilinear", "bicubic")  # of uint8 tensors, without a conversion to floats
_CROP_MODES = ("center", "squash", "border")
_BEFORE_RULES = PixelRule(icc="ignore").to_json()  # what records without a rule were made by
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """timm's evaluation transform in numbers: resize and crop to ``(size, size)``, then ``(x - mean) / std``.

    x is 0 for black and 1 for white, as ``pixels`` rules; ``mean`` and ``std`` are of each channel that the network reads.
    """

    size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: PixelRule = PHOTOGRAPHS

    def __post_init__(self) -> None:
        """Raise UsageError for a value that has no meaning: the files of runs, stores and probes may state anything."""
        checks: dict[str, Callable[[Any], bool]] = {
            "size": lambda size: type(size) is int and 0 < size <= MAX_SIDE,
            "crop_pct": lambda share: is_number(share) and self.size / MAX_SIDE <= share <= self.size,
            "crop_mode": lambda mode: mode in _CROP_MODES,
            "interpolation": lambda name: name in _INTERPOLATIONS,
            "mean": self._is_colour,
            "std": lambda std: self._is_colour(std) and all(value > 0 for value in std),
        }
        for name, check in checks.items():
            if not check(value := getattr(self, name)):
                raise UsageError(f"preprocessing: {name} {shorten_text(repr(value))} has no meaning")
        if self.pixels.floating and (self.crop_mode == "border" or self.interpolation not in _NATIVE_RESIZES):
            raise UsageError(
                f"images of {self.pixels.in_chans} channels are resized by {' or '.join(_NATIVE_RESIZES)}, and cropped without"
                f" borders: not with interpolation {self.interpolation!r} and crop mode {self.crop_mode!r}"
            )
        self.pixels.check_channels()

    def _is_colour(self, values: object) -> bool:
        return isinstance(values, tuple) and len(values) == self.pixels.in_chans and all(map(is_number, values))

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        image_size: int | None = None,
        pixels: PixelRule | None = None,
        channel_stats: ChannelStats | None = None,
    ) -> "Preprocessing":
        """Read a model's ``pretrained_cfg``.

        Args:
            image_size: Another size of the input, at least 32 pixels.
            pixels: Which channels it reads, and what is black and white. Where it is None, or has a default: the model's own
                ``pixel_rule``, or that of photographs. The number of channels is the model's in any case.
            channel_stats: Mean and deviation in place of the model's. Of floats in whatever range they are the range, too:
                with ``auto`` it is then that of the type.
        """
        config = resolve_model_data_config(model)
        if len(config["input_size"]) != 3:
            raise UsageError(f"the model's input has {len(config['input_size'])} dimensions, not channels, height and width")
        channels, height, width = config["input_size"]
        channels = getattr(model, "in_chans", channels)
        if image_size is not None and image_size < 32:
            raise UsageError(f"image size {image_size}: the networks need at least 32 pixels")
        if image_size is None and height != width:
            raise UsageError(f"the model's input is {height}×{width}: only square inputs are prepared here, name an image size")
        rule = replace((pixels or PHOTOGRAPHS).complete(_read_own_rule(model)), in_chans=channels)
        if channel_stats is None:
            channel_stats = ChannelStats(tuple(config["mean"]), tuple(config["std"]))
        else:
            rule = channel_stats.complete_rule(rule)
            if rule.range == "auto" and rule.floating:
                rule = replace(rule, range="dtype")
        if len(channel_stats.mean) != channels:
            raise UsageError(
                f"the model reads {channels} channels, but mean and deviation are of {len(channel_stats.mean)}: give"
                " --channel-stats fit, or a file with those of each channel"
            )
        return cls(
            size=image_size or height,
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            interpolation=config["interpolation"],
            mean=channel_stats.mean,
            std=channel_stats.std,
            pixels=rule,
        )

    @classmethod
    def from_json(cls, values: Any, owner: str) -> "Preprocessing":
        """Make what :meth:`to_json` wrote. Raises UsageError, which begins with ``owner``, for other values and huge sizes."""
        try:
            values = complete_record(values)
            options: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in values.items()}
            pixels = options.pop("pixels")
            return cls(**options, pixels=PixelRule.from_json(pixels))
        except (TypeError, AttributeError, UsageError) as error:
            reason = shorten_text(str(error))
            raise UsageError(f"{owner} records no preprocessing that can be applied ({reason})") from error

    def geometry(self) -> "Geometry":
        """Return the part for workers: resize and crop."""
        steps = create_transform(
            input_size=(self.pixels.in_chans, self.size, self.size),
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,  # the colour of borders
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )
        if self.crop_mode == "border" or self.interpolation not in _NATIVE_RESIZES:
            return Geometry(steps, None)  # of three channels
        tensor_steps = [v2.Resize(s.size, s.interpolation) if isinstance(s, Resize) else s for s in steps.transforms]
        return Geometry(steps, Compose(tensor_steps))

    def see_whole(self) -> "Preprocessing":
        """Return the same for whole images: the square holds all of the image, stretched, and nothing is cropped."""
        return replace(self, crop_pct=1.0, crop_mode="squash")

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert uint8 ``(N, 3, H, W)``, or float32 ``(N, C, H, W)``, to normalised float32, on the device of the pixels."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        scaled = pixels.sub(mean) if pixels.is_floating_point() else pixels.float().div_(255).sub_(mean)
        return scaled.div_(std)

    def make_blank(self, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Make ``count`` black images as :meth:`geometry` returns them, ``(count, C, size, size)``."""
        dtype = torch.float32 if self.pixels.floating else torch.uint8
        return torch.zeros(count, self.pixels.in_chans, self.size, self.size, dtype=dtype, device=device)

    def to_json(self) -> dict[str, Any]:
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return values | {"pixels": self.pixels.to_json()}


@dataclass(frozen=True)
class Geometry:
    """Resizing and cropping of RGB images and tensors ``(C, H, W)`` to contiguous ``(C, size, size)`` of their type.

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


def complete_record(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Add to what :meth:`Preprocessing.to_json` wrote in earlier versions what was then the only way."""
    return preprocessing | {"pixels": preprocessing.get("pixels", _BEFORE_RULES)}


def _read_own_rule(model: nn.Module) -> PixelRule:
    """Read the rule that a model's weights brought along, as a rule or as JSON has it. Raises UsageError for other values."""
    rule = getattr(model, "pixel_rule", None) or PHOTOGRAPHS
    return rule if isinstance(rule, PixelRule) else PixelRule.from_json(rule)
