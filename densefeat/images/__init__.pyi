from .addresses import is_remote
from .columns import check_column
from .decode import MAX_PIXELS, ImageLike, check_decoder, decode_image, decode_pixels, open_image
from .files import Files, Indexed, LocalFolder, reason_of
from .hub import Saved, open_saved, open_split
from .lists import BOM, DELIMITERS, PATH, TEXTS, normalised, one_array
from .sources import check_input, open_source
from .stream import Decoded, ImageItem, Item, Selected, Source, printable_key
from .tables import Tables
from .tiles import TiledSource
from .transforms import Geometry, Preprocessing

__all__ = [
    "BOM",
    "DELIMITERS",
    "MAX_PIXELS",
    "PATH",
    "TEXTS",
    "Decoded",
    "Files",
    "Geometry",
    "ImageItem",
    "ImageLike",
    "Indexed",
    "Item",
    "LocalFolder",
    "Preprocessing",
    "Saved",
    "Selected",
    "Source",
    "Tables",
    "TiledSource",
    "check_column",
    "check_decoder",
    "check_input",
    "decode_image",
    "decode_pixels",
    "is_remote",
    "normalised",
    "one_array",
    "open_image",
    "open_saved",
    "open_source",
    "open_split",
    "printable_key",
    "reason_of",
]
