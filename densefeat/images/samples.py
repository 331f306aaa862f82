"""What samples mean: greys, colours and transparency of 1 to 16 bits become the 8-bit RGB that a person would see."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from densefeat.errors import DecodeError

COLOURS = {"grey": 1, "palette": 1, "rgb": 3, "ycbcr": 3, "cmyk": 4}  # samples a pixel, without transparency
_DARK = 2**12 - 1  # of 16 bits: an image with nothing above it would be nearly black


@dataclass(frozen=True)
class Samples:
    """The meaning of unsigned samples ``(h, w, n)``.

    Attributes:
        colours: What the first samples of a pixel are, a key of ``COLOURS``; others are ignored.
        bits: Bits of a sample that are used, 1 to 16, the lowest of those that it is stored in.
        inverted: Zero is white.
        alpha: Which sample of a pixel is transparency, if any.
        premultiplied: Colours are already multiplied by their transparency.
        palette: uint8 ``(2**bits, 3)``.
    """

    colours: str
    bits: int
    inverted: bool = False
    alpha: int | None = None
    premultiplied: bool = False
    palette: np.ndarray | None = None

    def to_rgb(self, samples: np.ndarray) -> np.ndarray:
        """Convert samples ``(h, w, n)`` to uint8 RGB ``(h, w, 3)``, transparency over white.

        Of samples with more than 8 bits the 8 highest are taken. Raises DecodeError for samples with more bits.
        """
        colours = samples[..., : COLOURS[self.colours]]
        if self.alpha is None:
            return self._to_colour(colours if self.palette is not None else self._to_8_bits(colours))
        alpha = self._to_8_bits(samples[..., self.alpha, None])
        values = colours if self.palette is not None else self._to_8_bits(colours)
        if self.premultiplied:  # also where a sample is ink: it is divided before it becomes light
            values = np.minimum(np.rint(values * (255 / np.maximum(alpha, 1))), 255).astype(np.uint8)
        return lay_over_white(Image.fromarray(np.concatenate([self._to_colour(values), alpha], axis=2), "RGBA"))

    def _to_colour(self, values: np.ndarray) -> np.ndarray:
        """Convert numbers of a palette, or samples of 8 bits without transparency, to uint8 RGB ``(h, w, 3)``."""
        if self.palette is not None:
            return self.palette[values[..., 0].astype(np.uint8)]
        if self.inverted:
            values = 255 - values
        if self.colours in ("ycbcr", "cmyk"):
            mode = "YCbCr" if self.colours == "ycbcr" else "CMYK"
            return np.asarray(Image.frombytes(mode, values.shape[1::-1], values.tobytes()).convert("RGB"))
        return np.broadcast_to(values, (*values.shape[:2], 3))

    def _to_8_bits(self, samples: np.ndarray) -> np.ndarray:
        """Scale samples to uint8, so that white becomes 255."""
        if self.bits == 8:
            return samples.astype(np.uint8, copy=False)
        if (brightest := int(samples.max(initial=0))) >= 2**self.bits:
            raise DecodeError(f"samples of {brightest:,}, but the file declares that they have {self.bits} bits")
        if self.bits > 8:
            return (samples >> (self.bits - 8)).astype(np.uint8)
        return np.rint(samples * (255 / (2**self.bits - 1))).astype(np.uint8)

    @property
    def may_be_shallow(self) -> bool:
        """Whether samples of fewer bits may be stored in these without a word: :func:`check_brightness` tells."""
        return self.bits == 16

    def find_brightest(self, samples: np.ndarray) -> int:
        """Return the largest sample of ``(h, w, n)`` that is not transparency."""
        return int(samples[..., : COLOURS[self.colours]].max(initial=0))


def is_bright(brightest: int) -> bool:
    """Check whether the brightest 16-bit sample shows that all bits are used."""
    return brightest > _DARK


def check_brightness(brightest: int) -> None:
    """Raise DecodeError where the brightest 16-bit sample of a whole image shows that fewer bits were probably used.

    Cameras with 12 bits, and masks with one number an object, are stored in 16 bits without a word on what white is.
    """
    if brightest and not is_bright(brightest):
        raise DecodeError(
            f"16-bit samples of at most {brightest:,}, nearly black: of fewer bits stored in 16, or no brightness at all."
            " Scale them to 65,535, or to 8 bits"
        )


def lay_over_white(image: Image.Image) -> np.ndarray:
    """Return the pixels of an RGBA image over white, uint8 RGB ``(h, w, 3)``."""
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
