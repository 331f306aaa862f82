from .columns import BY_KEY, block_and_pool, choose_column, pools_of
from .conversion import chosen_vectors, convert
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
    "BY_KEY",
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
    "block_and_pool",
    "check_folder",
    "check_output",
    "choose_column",
    "chosen_vectors",
    "close",
    "convert",
    "count_failures",
    "csv_beside",
    "describe_store",
    "earlier_failures",
    "embedding_schema",
    "entry_columns",
    "failures_file",
    "finish_part",
    "finished_parts",
    "have_outcome",
    "is_embeddings",
    "make_file_thumbnail",
    "make_pictures",
    "make_thumbnails",
    "open_store",
    "points_beside",
    "pools_of",
    "read_entries",
    "read_manifest",
    "read_record",
    "read_records",
    "remove_work",
    "row_paths",
    "shrink_image",
    "write_failures",
]
