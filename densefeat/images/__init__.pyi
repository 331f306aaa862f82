from .addresses import is_remote
from .csv_files import DELIMITERS, check_line_breaks, read_csv
from .decode import DecodedImage, ImageLike, check_decoder, decode_image, decode_pixels, open_image
from .files import PATH, TEXTS, ImageFiles, normalise_paths
from .folders import LocalFolder, is_hidden
from .guards import MAX_PIXELS
from .label_text import clean_labels
from .rows import join_chunks
from .sources import TAR_LABEL, check_input, is_image_folder, list_splits, open_for_training, open_source
from .split_folders import SPLIT_NAMES, find_splits, list_inner_folders
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
    "DELIMITERS",
    "MAX_PIXELS",
    "PATH",
    "SPLIT_NAMES",
    "TAR_LABEL",
    "TEXTS",
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
    "check_decoder",
    "check_input",
    "check_line_breaks",
    "clean_labels",
    "decode_image",
    "decode_pixels",
    "find_splits",
    "is_hidden",
    "is_image_folder",
    "is_remote",
    "join_chunks",
    "list_inner_folders",
    "list_splits",
    "normalise_paths",
    "open_for_training",
    "open_image",
    "open_source",
    "printable_key",
    "printable_keys",
    "read_csv",
]
