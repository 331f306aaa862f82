from .addresses import is_remote
from .decode import DecodedImage, ImageLike, check_decoder, decode_image, decode_pixels, open_image
from .files import BOM, DELIMITERS, PATH, ImageFiles, normalise_paths
from .folders import LocalFolder, is_hidden
from .guards import MAX_PIXELS
from .rows import check_column, join_chunks
from .sources import check_input, open_for_training, open_source
from .stamps import Stamps
from .stream import (
    ImageItem,
    ImageReader,
    Item,
    Listing,
    RandomAccess,
    SelectedSource,
    Source,
    printable_key,
    printable_keys,
)
from .tiles import TiledSource
from .transforms import Geometry, Preprocessing

__all__ = [
    "BOM",
    "DELIMITERS",
    "MAX_PIXELS",
    "PATH",
    "DecodedImage",
    "Geometry",
    "ImageFiles",
    "ImageItem",
    "ImageLike",
    "ImageReader",
    "Item",
    "Listing",
    "LocalFolder",
    "Preprocessing",
    "RandomAccess",
    "SelectedSource",
    "Source",
    "Stamps",
    "TiledSource",
    "check_column",
    "check_decoder",
    "check_input",
    "decode_image",
    "decode_pixels",
    "is_hidden",
    "is_remote",
    "join_chunks",
    "normalise_paths",
    "open_for_training",
    "open_image",
    "open_source",
    "printable_key",
    "printable_keys",
]
