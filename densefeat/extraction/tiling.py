"""What of an input is extracted: its images, or tiles of them."""

from dataclasses import dataclass

from densefeat.errors import UsageError
from densefeat.images import MAX_PIXELS, Source, TiledSource


@dataclass(frozen=True)
class Tiling:
    """Turns images into what is extracted: tiles, or with ``tile`` None themselves."""

    tile: int | None = None
    stride: int | None = None
    min_content: float = 0.0
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.tile is None and (self.stride is not None or self.min_content):
            raise UsageError("--stride and --min-content are for tiles: give --tile too")

    def __call__(self, source: Source) -> Source:
        if self.tile is None:
            return source
        return TiledSource(source, self.tile, self.stride, self.min_content, self.max_pixels)
