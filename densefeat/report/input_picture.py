"""A picture of what a network reads of an image."""

from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from densefeat.base import save_picture
from densefeat.images import ChannelStats, ImageFacts, PixelRule, Preprocessing, make_visible
from densefeat.loading import find_config

_BINS = 200


def draw_input(facts: ImageFacts, model: str, rule: PixelRule, path: Path) -> None:
    """Draw an image as a network reads it, resized and cropped, beside the distribution of each channel's values.

    ``model``: a name; its weights are not needed. Raises UsageError for an unknown name, and as
    :func:`densefeat.base.pictures.save_picture`.
    """
    assert facts.decoded is not None, "an image that a rule cannot be applied to has no input"
    find_config(model)
    channels = rule.in_chans
    stats = None if channels == 3 else ChannelStats.make_blank(channels)
    net = timm.create_model(model, in_chans=channels)
    net.in_chans = channels  # type: ignore[assignment]
    pixels = Preprocessing.for_model(net, None, rule, stats).geometry()(facts.decoded.pixels)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    shown, spread = figure.subplots(1, 2)
    shown.imshow(_make_picture(pixels))
    shown.set_title(f"what {model} reads: {pixels.shape[2]} × {pixels.shape[1]}, {pixels.shape[0]} channels", fontsize=9)
    shown.set_axis_off()
    _draw_values(spread, pixels)
    save_picture(figure, path)


def _make_picture(pixels: torch.Tensor) -> np.ndarray:
    """Return uint8 RGB ``(H, W, 3)`` of pixels ``(C, H, W)``; floats are stretched to be seen."""
    if pixels.is_floating_point():
        return make_visible(pixels.numpy())
    return np.asarray(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))


def _draw_values(axes: Axes, pixels: torch.Tensor) -> None:
    """Draw how often each value occurs, black at 0 and white at 1."""
    values = pixels.float().flatten(1).numpy() / (1 if pixels.is_floating_point() else 255)
    for number, channel in enumerate(values, 1):
        axes.hist(channel, _BINS, histtype="step", label=f"channel {number}")
    axes.set_xlabel("value: 0 is black, 1 is white")
    axes.set_ylabel("pixels")
    if 1 < len(values) <= 12:
        axes.legend(fontsize=7)
