"""Read DICOM files: their frames one at a time, as samples and what these mean. Nothing else of a header is looked at."""

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from densefeat.errors import DecodeError
from densefeat.images.dicom_frames import Layout, read_frame, read_layout
from densefeat.images.dicom_header import Header, hide_values, read_header
from densefeat.images.dicom_values import describe_frame
from densefeat.images.footprint import count_dicom_bytes, count_profile_bytes
from densefeat.images.guards import check_image_size
from densefeat.images.memory import MEMORY
from densefeat.images.pixel_rule import PixelRule
from densefeat.images.samples import Samples


@dataclass(frozen=True)
class Dicom:
    """A DICOM whose header is read; its frames are images of one size."""

    header: Header
    layout: Layout
    max_pixels: int

    @property
    def width(self) -> int:
        return self.layout.width

    @property
    def height(self) -> int:
        return self.layout.height

    @property
    def frames(self) -> int:
        return self.layout.frames

    def decode(self, frame: int, rule: PixelRule) -> tuple[np.ndarray, Samples]:
        """Decode a frame, counted from 0: samples ``(h, w, n)`` and what they mean.

        What that takes is claimed from ``MEMORY`` until the block of ``MEMORY.hold`` around this ends. Raises DecodeError where
        the frame is not there, damaged, or has no agreed meaning.
        """
        if not 0 <= frame < self.frames:
            raise DecodeError(f"frame {frame + 1} of a DICOM of {self.frames:,}")
        layout = self.layout
        size = count_dicom_bytes(self.width, self.height, layout.samples, layout.dtype.itemsize, rule)
        if layout.colours != "grey" and self.header.profile is not None:
            size += count_profile_bytes(self.width, self.height)
        MEMORY.claim(size, f"{self.width}×{self.height} pixels of DICOM")
        with hide_values():
            values, colours = read_frame(self.header, layout, frame, self.max_pixels)
            return describe_frame(values, colours, self.header, layout, frame, rule)


def read_dicom(file: BinaryIO, max_pixels: int) -> Dicom:
    """Read the header of a DICOM. The file must stay open for its frames.

    Raises DecodeError where it is damaged, its frames are too large, or of a kind that is not read; UsageError without pydicom.
    """
    header = read_header(file)
    with hide_values():
        layout = read_layout(header)
        check_image_size(layout.width, layout.height, max_pixels)
        return Dicom(header, layout, max_pixels)
