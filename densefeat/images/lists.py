"""A list of paths (text, CSV, TSV, Parquet) as an ordered list of image files."""

import os
import posixpath
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from densefeat.errors import DecodeError, UsageError
from densefeat.images.columns import check_column, class_names, is_label, is_text, labels_of
from densefeat.images.files import Files, Folder, reason_of
from densefeat.images.stream import repeated

TEXTS, DELIMITERS = (".txt", ".lst"), {".csv": ",", ".tsv": "\t"}
PATH = "path"  # the column that is read where no other is named
_MAX_LIST_BYTES = 2**33
_BLOCK = 65536  # lines read at a time
BOM = b"\xef\xbb\xbf"
# a path that is not yet as short as it can be, or may lead out of the folder
_ODD = r"^/|^[A-Za-z]:|//|(^|/)\.{1,2}(/|$)|/$|\\"


def open_list(
    home: Folder,
    name: str,
    images: str,
    base: Folder,
    prefixes: list[str],
    image_column: str | None = None,
    label_column: str | None = None,
) -> Files:
    """The files that the list ``name`` in ``home`` names, in its order; ``images``: what the user called the list.

    Paths are relative to ``base``, or begin with one of ``prefixes``, which are ways to write it. A path out of it,
    or one that stands in the list before, is an item that fails. Raises UsageError: no list, no path in it, no such column.
    """
    try:
        if home.size(name) > _MAX_LIST_BYTES:
            raise UsageError(f"images {images!r}: a list of more than {_MAX_LIST_BYTES:,} bytes")
        with home.open(name) as file:
            entries, labels = _read_list(file, name, images, image_column, label_column)
    except DecodeError as error:
        raise UsageError(f"images {images!r}: {error}") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UsageError(f"images {images!r}: {reason_of(error)}") from error
    if not len(entries):
        raise UsageError(f"images {images!r}: no path in this list")
    keys = normalised(entries, [os.fsencode(prefix) for prefix in prefixes])
    return Files(base, keys, labels, _repeats(keys))


def _read_list(
    file: BinaryIO, name: str, images: str, image_column: str | None, label_column: str | None
) -> tuple[pa.LargeBinaryArray, pa.LargeStringArray | None]:
    """Paths as they are written, and labels."""
    suffix = os.path.splitext(name.lower())[1]
    if suffix in TEXTS:
        if image_column or label_column:
            raise UsageError(f"images {images!r}: a text file has no columns, such as {image_column or label_column!r}")
        return pa.concat_arrays([pa.array([], pa.large_binary()), *_lines_of(file)]), None
    path = image_column or PATH
    if suffix in DELIMITERS:
        return _read_csv(file, DELIMITERS[suffix], images, path, label_column)
    return _read_parquet(file, images, path, label_column)


def _lines_of(file: BinaryIO) -> Iterator[pa.LargeBinaryArray]:
    """Lines that are not blank, some thousands at a time."""
    block: list[bytes] = []
    for number, line in enumerate(file):
        if number == 0:
            line = line.removeprefix(BOM)
        if line.strip():
            block.append(line.rstrip(b"\r\n"))
        if len(block) == _BLOCK:
            yield pa.array(block, pa.large_binary())
            block = []
    yield pa.array(block, pa.large_binary())


def _read_csv(
    file: BinaryIO, delimiter: str, images: str, path: str, label: str | None
) -> tuple[pa.LargeBinaryArray, pa.LargeStringArray | None]:
    """Both columns as they are written; an empty field of a label is none."""
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pa_csv.open_csv(file, parse_options=parse) as head:
        for column in (path, label):
            check_column(head.schema, column, images)
    file.seek(0)
    kinds = {path: pa.large_binary()} | ({label: pa.large_string()} if label else {})
    convert = pa_csv.ConvertOptions(
        column_types=kinds,
        include_columns=list(kinds),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    table = pa_csv.read_csv(file, parse_options=parse, convert_options=convert)
    return one_array(table.column(path)), one_array(table.column(label)) if label else None


def _read_parquet(
    file: BinaryIO, images: str, path: str, label: str | None
) -> tuple[pa.LargeBinaryArray, pa.LargeStringArray | None]:
    with pq.ParquetFile(file, read_dictionary=[path]) as table:
        schema = table.schema_arrow
        for column, fits in ((path, is_text), (label, is_label)):
            check_column(schema, column, images)
            if column is not None and not fits(schema.field(column).type):
                raise UsageError(f"images {images!r}: column {column!r} holds {schema.field(column).type}")
        paths, labels, size = [pa.array([], pa.large_binary())], [pa.array([], pa.large_string())], 0
        for batch in table.iter_batches(_BLOCK, columns=[path] if label is None else [path, label]):
            paths.append(labels_of(batch.column(path), None).cast(pa.large_binary()))
            if label is not None:
                labels.append(labels_of(batch.column(label), class_names(schema, label)))
            size += paths[-1].nbytes
            if size > _MAX_LIST_BYTES:
                raise UsageError(f"images {images!r}: a list of more than {_MAX_LIST_BYTES:,} bytes")
    return pa.concat_arrays(paths), None if label is None else pa.concat_arrays(labels)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays([pa.array([], column.type), *column.chunks])


def normalised(entries: pa.LargeBinaryArray, prefixes: list[bytes]) -> pa.LargeBinaryArray:
    """Paths relative to the folder that ``prefixes`` name, as short as can be; a null becomes empty."""
    entries = entries.fill_null(b"")
    odd = np.flatnonzero(pc.match_substring_regex(entries, _ODD).to_numpy(zero_copy_only=False))
    if not len(odd):
        return entries
    mask = np.zeros(len(entries), bool)
    mask[odd] = True
    short = [_normal(entry, prefixes) for entry in entries.take(pa.array(odd)).to_pylist()]
    return pc.replace_with_mask(entries, pa.array(mask), pa.array(short, pa.large_binary()))


def _normal(entry: bytes, prefixes: list[bytes]) -> bytes:
    """``prefixes`` end in a slash."""
    for prefix in prefixes:
        if b"://" in prefix and entry.startswith(prefix):
            entry = entry[len(prefix) :]
    if b"://" in entry:
        return entry
    path = posixpath.normpath(entry.replace(os.sep.encode(), b"/"))
    for prefix in prefixes:
        if path.startswith(prefix):
            return path[len(prefix) :]
    return path


def _repeats(keys: pa.LargeBinaryArray) -> dict[int, str]:
    """Why the later ones of equal keys fail, by position."""
    later = np.flatnonzero(repeated(keys))
    if not len(later):
        return {}
    first = pc.index_in(keys.take(pa.array(later)), keys).to_pylist()
    return {int(position): f"repeated: the same as position {place}" for position, place in zip(later, first, strict=True)}
