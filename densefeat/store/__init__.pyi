from .columns import block_name, choose_column, choose_columns, column_name, find_source, parse_columns, split_pools
from .conversion import convert
from .dataset import (
    all_failures,
    begin,
    check_folder,
    close,
    count_failures,
    earlier_failures,
    finish_part,
    have_outcome,
    remove_work,
    write_failures,
)
from .entries import ImageEntry, entry_columns, read_entries
from .info import describe_store
from .layout import PART_ROWS, Layout
from .manifest import Failure, Manifest, PartRecord, Round, read_manifest, read_record, read_records
from .outputs import MAP_KEY, check_output, csv_beside, points_beside
from .reader import Store, failures_file, finished_parts, is_embeddings, open_store, row_paths
from .thumbnails import Decodable, make_file_thumbnail, make_pictures, make_thumbnails, shrink_image
from .writer import DTYPES, EmbeddingWriter, embedding_schema

__all__ = [
    "DTYPES",
    "MAP_KEY",
    "PART_ROWS",
    "Decodable",
    "EmbeddingWriter",
    "Failure",
    "ImageEntry",
    "Layout",
    "Manifest",
    "PartRecord",
    "Round",
    "Store",
    "all_failures",
    "begin",
    "block_name",
    "check_folder",
    "check_output",
    "choose_column",
    "choose_columns",
    "close",
    "column_name",
    "convert",
    "count_failures",
    "csv_beside",
    "describe_store",
    "earlier_failures",
    "embedding_schema",
    "entry_columns",
    "failures_file",
    "find_source",
    "finish_part",
    "finished_parts",
    "have_outcome",
    "is_embeddings",
    "make_file_thumbnail",
    "make_pictures",
    "make_thumbnails",
    "open_store",
    "parse_columns",
    "points_beside",
    "read_entries",
    "read_manifest",
    "read_record",
    "read_records",
    "remove_work",
    "row_paths",
    "shrink_image",
    "split_pools",
    "write_failures",
]
