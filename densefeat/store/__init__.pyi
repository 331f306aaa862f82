from .checked_file import CheckedFile
from .columns import block_name, choose_column, choose_columns, column_name, find_source, parse_columns, split_pools
from .conversion import convert
from .damage import find_damaged_parts
from .entries import ImageEntry, list_entry_columns, read_entries
from .failures import count_failures, failures_file, is_failure_lines, read_failures, write_failure_lines, write_failures
from .folder import close_store, collect_failures, save_part, start_job
from .info import describe_store
from .layout import PART_ROWS, Layout
from .manifest import (
    Failure,
    Manifest,
    PartRecord,
    Round,
    list_finished_parts,
    read_manifest,
    read_record,
    read_records,
    require_manifest,
)
from .measured import load_measured, save_measured
from .outputs import (
    MAP_KEY,
    check_output,
    check_store_file,
    check_store_folder,
    choose_csv_file,
    choose_points_file,
    is_points_file,
    remove_work,
)
from .parts import find_known_paths, read_column, read_paths
from .quantized import read_quantized, save_quantized
from .reader import Store, is_store, open_store
from .redoing import can_redo, redo_parts
from .replacing import finish_replacement
from .stamps import RecordedStamps, read_stamps, write_stamps
from .thumbnails import (
    Decodable,
    encode_thumbnail,
    make_file_thumbnail,
    make_pictures,
    make_thumbnails,
    read_pictures,
    shrink_image,
)
from .verifying import Damage, verify_store
from .writer import DTYPES, EmbeddingWriter, make_embedding_schema

__all__ = [
    "DTYPES",
    "MAP_KEY",
    "PART_ROWS",
    "CheckedFile",
    "Damage",
    "Decodable",
    "EmbeddingWriter",
    "Failure",
    "ImageEntry",
    "Layout",
    "Manifest",
    "PartRecord",
    "RecordedStamps",
    "Round",
    "Store",
    "block_name",
    "can_redo",
    "check_output",
    "check_store_file",
    "check_store_folder",
    "choose_column",
    "choose_columns",
    "choose_csv_file",
    "choose_points_file",
    "close_store",
    "collect_failures",
    "column_name",
    "convert",
    "count_failures",
    "describe_store",
    "encode_thumbnail",
    "failures_file",
    "find_damaged_parts",
    "find_known_paths",
    "find_source",
    "finish_replacement",
    "is_failure_lines",
    "is_points_file",
    "is_store",
    "list_entry_columns",
    "list_finished_parts",
    "load_measured",
    "make_embedding_schema",
    "make_file_thumbnail",
    "make_pictures",
    "make_thumbnails",
    "open_store",
    "parse_columns",
    "read_column",
    "read_entries",
    "read_failures",
    "read_manifest",
    "read_paths",
    "read_pictures",
    "read_quantized",
    "read_record",
    "read_records",
    "read_stamps",
    "redo_parts",
    "remove_work",
    "require_manifest",
    "save_measured",
    "save_part",
    "save_quantized",
    "shrink_image",
    "split_pools",
    "start_job",
    "verify_store",
    "write_failure_lines",
    "write_failures",
    "write_stamps",
]
