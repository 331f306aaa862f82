"""Heat and classes drawn over an image."""

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

_SHARE = 0.55  # of the colours; the rest is the image, in grey where colours stand for numbers
_STEPS = 256


def enlarge_maps(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize maps ``(K, h, w)``, whose positions stand for equal parts of an image, to float32 ``(K, height, width)``.

    They are interpolated bilinearly between the centres of positions or, where they shrink, averaged, as grids are made.
    """
    values = torch.from_numpy(np.ascontiguousarray(maps, np.float32))[None]
    return functional.interpolate(values, (height, width), mode="bilinear", align_corners=False, antialias=True)[0].numpy()


def lay_heat(image: Image.Image, values: np.ndarray, low: float, high: float, signed: bool = False) -> Image.Image:
    """Lay a heat map over an image, which is turned to grey.

    ``values``: ``(h, w)``, over the whole image. Colours run from black at ``low`` and below to yellow at ``high`` and above;
    if ``signed``, from blue at ``low`` over white in the middle to red at ``high``.
    """
    large = enlarge_maps(values[None], image.height, image.width)[0]
    levels = np.clip((large - low) / max(high - low, 1e-12), 0, 1)
    colours = matplotlib.colormaps["RdBu_r" if signed else "inferno"](np.arange(_STEPS) / (_STEPS - 1))[:, :3]
    heat = colours[np.rint(levels * (_STEPS - 1)).astype(int)] * 255
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    return Image.fromarray(np.rint(_SHARE * heat + (1 - _SHARE) * grey).astype(np.uint8))


def make_palette(classes: int) -> np.ndarray:
    """Return a colour for each class, uint8 ``(classes, 3)``: the first is black, the others differ in hue and lightness.

    The colours of the PASCAL VOC masks: the bits of a class's number, spread over the bits of the three channels.
    """
    numbers = np.arange(classes)
    palette = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def lay_classes(image: Image.Image, mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Colour an image by the class of each pixel; pixels of a class whose colour is black stay as they are.

    ``mask``: integers ``(H, W)``, as large as the image; ``palette``: uint8 ``(classes, 3)``.
    """
    pixels = np.asarray(image.convert("RGB"), np.float32)
    colours = palette[mask]
    mixed = np.rint(_SHARE * colours + (1 - _SHARE) * pixels).astype(np.uint8)
    return Image.fromarray(np.where(colours.any(-1, keepdims=True), mixed, pixels.astype(np.uint8)))
