from .addresses import is_remote
from .channel_stats import ChannelStats, read_channel_stats
from .csv_files import DELIMITERS, check_line_breaks, read_csv
from .decode import DecodedImage, ImageLike, check_decoder, decode_image, decode_pixels, open_image
from .dicom_tags import read_tags, split_tags
from .files import PATH, TEXTS, ImageFiles, normalise_paths
from .folders import LocalFolder, is_hidden, read_file
from .guards import MAX_PIXELS
from .inspection import ImageFacts, inspect_image, make_visible
from .label_text import clean_labels
from .measuring import complete_preprocessing, measure_values
from .memory import MEMORY
from .pages import PagedSource, parse_pages
from .pixel_rule import PHOTOGRAPHS, PixelRule, parse_channels
from .pixel_statistics import PixelStatistics
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
    name_image,
    printable_key,
    printable_keys,
)
from .tiles import MAX_TILES, TiledSource
from .transforms import MAX_SIDE, Geometry, Preprocessing, complete_record

__all__ = [
    "DELIMITERS",
    "MAX_PIXELS",
    "MAX_SIDE",
    "MAX_TILES",
    "MEMORY",
    "PATH",
    "PHOTOGRAPHS",
    "SPLIT_NAMES",
    "TAR_LABEL",
    "TEXTS",
    "ChannelStats",
    "DecodedImage",
    "Geometry",
    "ImageFacts",
    "ImageFiles",
    "ImageItem",
    "ImageLike",
    "ImageReader",
    "Item",
    "Listing",
    "LocalFolder",
    "PagedSource",
    "PixelRule",
    "PixelStatistics",
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
    "complete_preprocessing",
    "complete_record",
    "decode_image",
    "decode_pixels",
    "find_splits",
    "inspect_image",
    "is_hidden",
    "is_image_folder",
    "is_remote",
    "join_chunks",
    "list_inner_folders",
    "list_splits",
    "make_visible",
    "measure_values",
    "name_image",
    "normalise_paths",
    "open_for_training",
    "open_image",
    "open_source",
    "parse_channels",
    "parse_pages",
    "printable_key",
    "printable_keys",
    "read_channel_stats",
    "read_csv",
    "read_file",
    "read_tags",
    "split_tags",
]
