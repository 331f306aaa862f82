"""Embedded colour profiles (ICC): colours of 8 bits become those of sRGB, which networks have seen and screens show.

A conversion is relative colorimetric, with compensation of the black point: a colour that sRGB has stays this colour, others
become the nearest on its border, and a print's black becomes black. The perceptual tables of a profile would change all colours
by the taste of its maker.
"""

import io
import struct
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

from densefeat.images.byte_cache import ByteCache
from densefeat.images.pixel_rule import PixelRule

MAX_PROFILE_BYTES = 2**22  # those of printers have one or two million
SPACES = {b"GRAY": "grey", b"RGB ": "rgb", b"CMYK": "cmyk"}  # by a profile's header
_MODES = {"grey": "L", "rgb": "RGB", "cmyk": "CMYK"}  # of Pillow
_CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")
_LONG_PIPELINES = (b"D2B", b"B2D")  # tags whose elements are as many as fit in, each computed for every colour
_MAX_TAGS = 100  # as LittleCMS has it
_STEPS = 17  # of each channel: the lattice on which a profile is compared with sRGB
_BLOCK = 2**18  # pixels converted at a time
_TRANSFORM_BYTES, _CACHE_BYTES = 2**19, 2**27


@dataclass(frozen=True)
class Profile:
    """What becomes of colours of 8 bits by an embedded profile.

    Attributes:
        bad: It cannot be used, and colours stay as they are.
        table: The sRGB colour of each grey, uint8 ``(256, 3)``.
        transform: Of RGB or CMYK, as ``mode`` says.
    """

    nbytes: int = 0
    bad: bool = False
    table: np.ndarray | None = None
    transform: Any = None
    mode: str = ""

    @property
    def changes_colours(self) -> bool:
        """Whether colours differ from those in sRGB by more than one level."""
        return self.table is not None or self.transform is not None

    def convert(self, pixels: np.ndarray) -> np.ndarray:
        """Convert pixels uint8 ``(h, w, n)`` to sRGB, uint8 ``(h, w, 3)``; of grey ones the first channel counts."""
        if self.table is not None:
            return self.table[pixels[..., 0]]
        height, width = pixels.shape[:2]
        converted = np.empty((height, width, 3), np.uint8)
        rows = max(1, _BLOCK // max(1, width))
        for top in range(0, height, rows):
            block = np.ascontiguousarray(pixels[top : top + rows])
            image = Image.frombuffer(self.mode, (width, len(block)), block, "raw", self.mode, 0, 1)
            converted[top : top + rows] = np.asarray(self.transform.apply(image))
        return converted


_NOTHING, _BAD = Profile(), Profile(bad=True)
_profiles: ByteCache[Profile] = ByteCache(_CACHE_BYTES)


def open_profile(data: bytes | None, colours: str, rule: PixelRule) -> Profile:
    """Look up what an image's profile does to its colours, one of the keys of ``COLOURS`` of ``samples.py``.

    A profile of RGB counts for grey, too: it is red, green and blue of the same value. Every other one must be of the image's
    own kind of colours. ``data``: None where the image has no profile; empty where it has one that cannot be read.
    """
    if data is None or not rule.converts_profiles:
        return _NOTHING
    if not 0 < len(data) <= MAX_PROFILE_BYTES:
        return _BAD
    colours = colours if colours in _MODES else "rgb"
    return _profiles.get((colours, data), partial(_make_profile, data, colours))


def _make_profile(data: bytes, colours: str) -> Profile:
    from PIL import ImageCms

    nbytes = len(data) + _TRANSFORM_BYTES
    space = SPACES.get(data[16:20])
    if data[12:16] not in _CLASSES or space is None or (space != colours and (space, colours) != ("rgb", "grey")):
        return Profile(nbytes, bad=True)
    exact = colours == "grey"  # of a table the time does not matter
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if exact else ImageCms.Flags.NONE)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(_hide_long_pipelines(data)))
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(source, _make_srgb(), _MODES[space], "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError):
        return Profile(nbytes, bad=True)
    profile = Profile(nbytes, transform=transform, mode=_MODES[space])
    if colours == "grey":
        greys = np.arange(256, dtype=np.uint8)[None, :, None]
        table = profile.convert(greys if space == "grey" else greys.repeat(3, 2))[0]
        return Profile(nbytes, table=None if _are_equal(table, greys[0]) else table)
    if colours == "rgb":
        lattice = _make_lattice()
        if _are_equal(profile.convert(lattice), lattice):
            return Profile(nbytes)
    return profile


def _hide_long_pipelines(data: bytes) -> bytes:
    """Rename tags of processing elements, so that the tables beside them are taken."""
    hidden = bytearray(data)
    (count,) = struct.unpack_from(">L", data.ljust(132, b"\0"), 128)
    for place in range(132, min(132 + 12 * min(count, _MAX_TAGS), len(data) - 3), 12):
        if data[place : place + 3] in _LONG_PIPELINES:
            hidden[place] = 0
    return bytes(hidden)


@cache
def _make_srgb() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("sRGB")


def _make_lattice() -> np.ndarray:
    """Return colours that fill the cube evenly, with all greys: uint8 ``(n, 1, 3)``."""
    steps = np.linspace(0, 255, _STEPS).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 1, 3)
    return np.concatenate([colours, np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2)])


def _are_equal(colours: np.ndarray, others: np.ndarray) -> bool:
    return bool(np.abs(colours.astype(np.int16) - others).max() <= 1)
