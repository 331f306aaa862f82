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
from .info import describe_store
from .layout import PART_ROWS, Layout
from .manifest import Failure, Manifest, PartRecord, Round, read_manifest, read_record, read_records
from .originals import Decodable, pictures_by, shrunk, thumbnail_of_file, thumbnails, thumbnails_by
from .outputs import MAP_KEY, check_output, csv_beside, points_beside
from .reader import Store, failures_file, finished_parts, is_embeddings, open_store, row_paths
from .writer import DTYPES, EmbeddingWriter, embedding_schema

__all__ = [
    "BY_KEY",
    "DTYPES",
    "MAP_KEY",
    "PART_ROWS",
    "Decodable",
    "EmbeddingWriter",
    "Failure",
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
    "failures_file",
    "finish_part",
    "finished_parts",
    "have_outcome",
    "is_embeddings",
    "open_store",
    "pictures_by",
    "points_beside",
    "pools_of",
    "read_manifest",
    "read_record",
    "read_records",
    "remove_work",
    "row_paths",
    "shrunk",
    "thumbnail_of_file",
    "thumbnails",
    "thumbnails_by",
    "write_failures",
]
