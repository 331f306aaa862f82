"""Frames of animations (GIF, WebP, APNG), each as it is seen: with what earlier frames have left in place."""

import io
from threading import Lock
from typing import BinaryIO

from PIL import Image, PngImagePlugin

from densefeat.errors import DecodeError
from densefeat.images import footprint, png
from densefeat.images.decode import DecodedImage, convert_opened
from densefeat.images.dicom import read_dicom
from densefeat.images.dicom_header import is_dicom
from densefeat.images.guards import check_image_size, decode_errors
from densefeat.images.memory import MEMORY
from densefeat.images.orientation import find_orientation
from densefeat.images.pillow_images import open_header
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.sampled import HEAD_BYTES

_KEPT = 2**26  # bytes of frames that are kept: threads do not ask for them quite in order
_OPEN_BYTES = 17  # a pixel, that an open animation takes
_FRAME_BYTES = 16  # a pixel, that decoding a frame takes


def may_have_frames(head: bytes) -> bool:
    """Tell by a file's first bytes whether it is of a format that has animations."""
    return head.startswith((*footprint.GIF_MAGIC, png.MAGIC)) or footprint.is_webp(head)


def count_frames(file: BinaryIO, max_pixels: int) -> int:
    """Count the frames of an animation or a DICOM; 1 for other formats. Raises DecodeError for a header that is damaged."""
    with decode_errors(), MEMORY.hold():
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if is_dicom(head):
            return read_dicom(file, max_pixels).frames
        if head.startswith(footprint.GIF_MAGIC):
            return footprint.count_gif_frames(file)
        if head.startswith(png.MAGIC):
            return png.count_frames(file)
        return getattr(open_header(file, max_pixels), "n_frames", 1) if footprint.is_webp(head) else 1


class Frames:
    """An open animation. Each frame needs those before it, so they are decoded in order, by one thread at a time."""

    def __init__(self, image: Image.Image, count: int, encoded: int, orientation: int) -> None:
        self.count, self.orientation = count, orientation
        self.pixels = image.width * image.height
        self.nbytes = encoded + self.pixels * _OPEN_BYTES + _KEPT
        self._image = image
        self._lock = Lock()
        self._kept: dict[int, Image.Image] = {}

    def decode(self, page: int, max_pixels: int, rule: PixelRule) -> DecodedImage:
        """Decode a frame, counted from 1. Raises DecodeError where it cannot be decoded, or there is none."""
        if not 1 <= page <= self.count:
            raise DecodeError(f"page {page}: the file has {self.count}")
        size = self._image.size
        with decode_errors(), MEMORY.hold():
            needed = self.pixels * _FRAME_BYTES + footprint.count_rule_bytes(*size, rule)
            MEMORY.claim(needed, f"{size[0]}×{size[1]} pixels of an animation")
            return convert_opened(self._find(page - 1), max_pixels, rule, self.orientation)

    def _find(self, number: int) -> Image.Image:
        """Return a copy of a frame, which does not change when the next one is decoded."""
        with self._lock:
            if number not in self._kept:
                for passed in range(min(self._image.tell() + 1, number), number + 1):
                    self._image.seek(passed)
                    self._keep(passed, self._image.copy())
            return self._kept[number]

    def _keep(self, number: int, frame: Image.Image) -> None:
        self._kept[number] = frame
        while len(self._kept) > 1 and sum(self.pixels * len(kept.getbands()) for kept in self._kept.values()) > _KEPT:
            del self._kept[next(iter(self._kept))]


def open_frames(data: bytes, max_pixels: int) -> Frames:
    """Open an animation. Raises DecodeError for a header that is damaged, and for a PNG of more than 8 bits a sample."""
    with decode_errors(), MEMORY.hold():
        count = count_frames(io.BytesIO(data), max_pixels)
        if not data.startswith(png.MAGIC):
            image = open_header(io.BytesIO(data), max_pixels)
            return Frames(image, count, len(data), find_orientation(image.info))
        header = png.read_png(io.BytesIO(data), with_pixels=False)
        check_image_size(header.width, header.height, max_pixels)
        if count > 1 and header.sample_bytes > 1:
            raise DecodeError("an animated PNG of 16 bits: only its first frame is read")
        return Frames(PngImagePlugin.PngImageFile(io.BytesIO(data)), count, len(data), header.orientation)
