"""What the samples of an image mean by what its file says: colours, transparency, bands, and the values of black and white."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from densefeat.images.icc import Profile

COLOURS = {"grey": 1, "palette": 1, "rgb": 3, "ycbcr": 3, "cmyk": 4, "bands": 0}  # samples a pixel, without transparency


@dataclass(frozen=True)
class Samples:
    """The meaning of samples ``(h, w, n)`` of any real dtype.

    Attributes:
        colours: What the first samples of a pixel are, a key of ``COLOURS``; those behind them have no agreed meaning, and of
            ``bands`` none has.
        bits: Bits of an unsigned sample that are used, the lowest of those that it is stored in; 0 for signed samples, floats,
            and those of more than 16 bits, whose white is not known from that.
        inverted: The lowest value is white.
        alpha: Which sample of a pixel is transparency, if any.
        premultiplied: Colours are already multiplied by their transparency.
        palette: uint8 ``(n, 3)``.
        declared: Black and white as the file declares them.
        limits: The smallest and the largest value that samples without ``bits`` can have, where these do not follow from their
            type. They are no declaration, and are doubted where an image is far from filling them.
        names: The names of the samples, where the file has them.
        nodata: The value that stands for a missing pixel, where the file declares one.
        icc: The colour profile that is embedded in the file.
    """

    colours: str
    bits: int
    inverted: bool = False
    alpha: int | None = None
    premultiplied: bool = False
    palette: np.ndarray | None = None
    declared: tuple[float, float] | None = None
    limits: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    nodata: float | None = None
    icc: bytes | None = field(default=None, repr=False)

    @property
    def may_be_shallow(self) -> bool:
        """Whether samples of fewer bits may be stored in these without a word."""
        return self.bits == 16 and self.declared is None

    @property
    def fills_8_bits(self) -> bool:
        """Whether samples are those of a photograph, 0 to 255."""
        return self.bits == 8 and self.declared in (None, (0, 255))

    @property
    def needs_conversion(self) -> bool:
        """Whether the samples are colours of another kind than RGB, or transparent: they are pictures, not measurements."""
        return self.alpha is not None or self.colours in ("palette", "ycbcr", "cmyk")

    def find_brightest(self, samples: np.ndarray) -> int:
        """Return the largest sample of ``(h, w, n)`` that is not transparency."""
        return int(samples[..., : COLOURS[self.colours] or None].max(initial=0))

    def to_rgb(self, values: np.ndarray, alpha: np.ndarray | None, profile: Profile) -> np.ndarray:
        """Convert colours, uint8 ``(h, w, n)`` or numbers of a palette, to uint8 RGB ``(h, w, 3)``, transparency over white.

        ``alpha``: uint8 ``(h, w, 1)``, where there is transparency.
        """
        if alpha is None:
            return self._to_colour(values, profile)
        if self.premultiplied:  # also where a sample is ink: it is divided before it becomes light
            values = np.minimum(np.rint(values * (255 / np.maximum(alpha, 1))), 255).astype(np.uint8)
        return lay_over_white(Image.fromarray(np.concatenate([self._to_colour(values, profile), alpha], axis=2), "RGBA"))

    def _to_colour(self, values: np.ndarray, profile: Profile) -> np.ndarray:
        if self.palette is not None:
            values = self.palette[values[..., 0].astype(np.uint16)]
        elif self.inverted:
            values = 255 - values
        if self.colours == "ycbcr" or (self.colours == "cmyk" and not profile.changes_colours):
            mode = "YCbCr" if self.colours == "ycbcr" else "CMYK"
            values = np.asarray(Image.frombytes(mode, values.shape[1::-1], values.tobytes()).convert("RGB"))
        if profile.changes_colours:
            return profile.convert(values)
        return np.broadcast_to(values, (*values.shape[:2], 3))


def lay_over_white(image: Image.Image) -> np.ndarray:
    """Return the pixels of an RGBA image over white, uint8 RGB ``(h, w, 3)``."""
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
