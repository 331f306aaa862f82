"""Tables of images: which columns hold images and labels, and rows as items."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import shorten
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from densefeat.base import parse_json, shorten_text
from densefeat.errors import DecodeError, MissingColumn, UsageError
from densefeat.images.folders import MAX_BYTES
from densefeat.images.label_text import clean_labels
from densefeat.images.stream import ImageItem, make_unreadable_item

_log = logging.getLogger(__name__)
_NO_IMAGE = "neither bytes nor a path in this row"
_MAX_TEXT_BYTES = 4096  # of a label or a path of a list: in a table one text may stand in any number of rows
_COLUMNS_NAMED = 20  # in a message
_LABEL = "label"  # the column that is read where none is named
_UNLABELLED = "-1"  # what datasets writes where the classes of a test split are not published


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """The names of the columns with images and with labels."""

    image: str
    label: str | None

    def names(self) -> pa.StringArray:
        """Return both names for a fingerprint: the same rows with the images of another column are another input."""
        return pa.array([self.image, self.label], pa.string())


def choose_image_columns(
    schemas: Sequence[pa.Schema], image_column: str | None, label_column: str | None, images: str
) -> ImageColumns:
    """Choose the columns of tables that hold images and labels; of several tables the first that has such a column decides.

    ``images``: what the user named, for errors. A column ``label`` of labels is taken where none is named.
    Raises UsageError where a column is missing or of another type, or where the user has to choose one of several.
    """
    for column in (image_column, label_column):
        check_column(_find_schema(schemas, partial(_has_column, column=column)), column, f"images {images!r}")
    if image_column is None:
        image_column = _choose_image_column(_find_schema(schemas, list_image_columns), images)
    schema = _find_schema(schemas, partial(_has_column, column=image_column, fits=is_image))
    if not is_image(schema.field(image_column).type):
        raise UsageError(
            f"images {images!r}: column {image_column!r} holds {schema.field(image_column).type}, no encoded images"
        )
    label = label_column or _LABEL
    schema = _find_schema(schemas, partial(_has_column, column=label, fits=_has_labels))
    if _has_column(schema, label, _has_labels):
        return ImageColumns(image_column, label)
    if label_column is not None:
        raise UsageError(f"images {images!r}: column {label!r} holds {schema.field(label).type}, no labels: strings or numbers")
    if label in schema.names and not types.is_null(schema.field(label).type):
        _log.warning("images %r: column %r is not read: it holds %s, no labels", images, label, schema.field(label).type)
    return ImageColumns(image_column, None)


def _find_schema(schemas: Sequence[pa.Schema], fits: Callable[[pa.Schema], Any]) -> pa.Schema:
    """Return the first schema that fits, else the first of all."""
    return next((schema for schema in schemas if fits(schema)), schemas[0])


def _has_column(schema: pa.Schema, column: str | None, fits: Callable[[pa.DataType], bool] = lambda _: True) -> bool:
    """Check for exactly one column of this name, whose type fits."""
    return column is not None and schema.get_field_index(column) >= 0 and fits(schema.field(column).type)


def check_column(schema: pa.Schema, column: str | None, subject: str, advice: str = "") -> None:
    """Raise UsageError unless exactly one column has this name.

    ``subject``: begins the message, such as "images 'a.csv'"; ``advice``: what to do where no column has the name.
    """
    if column is None or schema.get_field_index(column) >= 0:
        return
    columns = shorten_text(", ".join(schema.names))
    like = [name for name in schema.names if name.strip().lower() == column.lower()]
    if column in schema.names:
        problem = f"more than one column {column!r}: it has {columns}"
    elif like:
        problem = f"no column {column!r}, but {like[0]!r}: write {column!r} there, without blanks beside it"
    else:
        raise MissingColumn(f"{subject}: no column {column!r}: it has {columns}{advice}")
    raise UsageError(f"{subject}: {problem}")


def _choose_image_column(schema: pa.Schema, images: str) -> str:
    """Return the column that is declared as an image, else the only one of a fitting type."""
    possible = list_image_columns(schema)
    declared = [name for name in possible if _read_feature(schema, name).get("_type") == "Image"]
    candidates = declared or possible
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UsageError(f"images {images!r}: more than one column of images: choose one of {', '.join(candidates)}")
    raise UsageError(f"images {images!r}: no column of encoded images: {describe_columns(schema)}")


def describe_columns(schema: pa.Schema) -> str:
    """Say which columns there are, and which could hold images."""
    columns = [f"{field.name} ({shorten(str(field.type), 80)})" for field in schema]
    some = ", ".join(columns[:_COLUMNS_NAMED]) + (", …" if len(columns) > _COLUMNS_NAMED else "")
    return f"it has {some}; images are columns of bytes, or structs of bytes and path, not in lists, in other structs or base64"


def list_image_columns(schema: pa.Schema) -> list[str]:
    """List the columns that can hold encoded images."""
    return [field.name for field in schema if is_image(field.type)]


def is_image(dtype: pa.DataType) -> bool:
    """Check for binary data, or datasets' struct of ``bytes`` and ``path``."""
    if types.is_struct(dtype):
        return dtype.get_field_index("bytes") >= 0 and is_image(dtype.field("bytes").type)
    return types.is_binary(dtype) or types.is_large_binary(dtype) or types.is_binary_view(dtype)


def is_text(dtype: pa.DataType) -> bool:
    dtype = dtype.value_type if types.is_dictionary(dtype) else dtype
    return types.is_string(dtype) or types.is_large_string(dtype) or types.is_string_view(dtype)


def is_label(dtype: pa.DataType) -> bool:
    """Check for text and numbers, and for a column of nulls alone, of which a file does not say what it is."""
    dtype = dtype.value_type if types.is_dictionary(dtype) else dtype
    numbers = types.is_integer(dtype) or types.is_float32(dtype) or types.is_float64(dtype)
    return is_text(dtype) or numbers or types.is_boolean(dtype) or types.is_null(dtype)


def _has_labels(dtype: pa.DataType) -> bool:
    return is_label(dtype) and not types.is_null(dtype)


def _read_feature(schema: pa.Schema, column: str) -> dict:
    """Read what datasets has written about a column; empty where there is nothing, or nothing of a known form."""
    try:
        feature = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (KeyError, TypeError, ValueError):
        return {}
    return feature if isinstance(feature, dict) else {}


def read_label_names(schema: pa.Schema, column: str | None) -> list[str] | None:
    """Read the class names of datasets' ClassLabel; None for a column of another kind."""
    names = _read_feature(schema, column).get("names") if column else None
    return list(map(str, names)) if isinstance(names, list) else None


def format_labels(values: pa.Array, names: list[str] | None) -> pa.LargeStringArray:
    """Turn labels into text: integers into the names of their classes if there are ``names``; null stays null.

    Whole numbers among floats are written as integers, and NaN is null: so pandas stores integers beside a missing one.
    Text is cleaned, see :func:`densefeat.images.label_text.clean_labels`. Raises DecodeError for text that is too long.
    """
    values = _decode_dictionary(values)
    is_float = types.is_floating(values.type)
    text = _format_floats(values) if is_float else clean_labels(_check_lengths(_decode_text(values), "label"))
    if names is None or not (is_float or types.is_integer(values.type)):
        return text
    numbers = pa.array(map(str, range(len(names))), pa.large_string())
    named = pa.array(names, pa.large_string()).take(pc.index_in(text, numbers))
    return pc.coalesce(named, pc.if_else(pc.equal(text, _UNLABELLED), None, text))


def _decode_dictionary(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if types.is_dictionary(values.type) else values


def _format_floats(values: pa.Array) -> pa.LargeStringArray:
    values = pc.if_else(pc.is_nan(values), None, values)
    doubles = values.cast(pa.float64())
    whole = pc.and_(pc.equal(doubles, pc.floor(doubles)), pc.less(pc.abs(doubles), 2.0**53))  # all of these are exact
    integers = pc.if_else(whole, doubles, None).cast(pa.int64())
    return pc.coalesce(integers.cast(pa.large_string()), values.cast(pa.large_string()))


def _decode_text(values: pa.Array) -> pa.LargeStringArray:
    """Turn values into text, with escapes for bytes that are not UTF-8, which Parquet files may contain."""
    values = _decode_dictionary(values)
    if not is_text(values.type):
        return values.cast(pa.large_string())
    data = values.cast(pa.large_binary())
    try:
        return data.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = (value and value.decode("utf-8", "backslashreplace") for value in data.to_pylist())
        return pa.array(texts, pa.large_string())


def decode_paths(values: pa.Array) -> pa.LargeBinaryArray:
    """Turn a column of paths into bytes. Raises DecodeError for one that is too long."""
    return _check_lengths(_decode_text(values), "path").cast(pa.large_binary())


def _check_lengths(text: pa.LargeStringArray, noun: str) -> pa.LargeStringArray:
    """Return ``text``. Raises DecodeError where one is longer than a label or a path can be."""
    longest = pc.max(pc.binary_length(text)).as_py() or 0
    if longest > _MAX_TEXT_BYTES:
        raise DecodeError(f"a {noun} of {longest:,} bytes: at most {_MAX_TEXT_BYTES:,} are read", "read")
    return text


def make_row_items(
    batch: pa.RecordBatch,
    columns: ImageColumns,
    names: list[str] | None,
    key: str,
    first: int,
    read_path: Callable[[str], bytes],
) -> Iterator[ImageItem]:
    """Make the items ``key#first``, ``key#first + 1``, … of rows. Raises errors of labels before the first item is taken.

    ``names``: of the label's classes; ``read_path``: reads the file of a row that has only a path.
    """
    data, paths = _split_bytes_and_paths(batch.column(columns.image))
    labels = [None] * len(batch)
    if columns.label is not None:
        labels = format_labels(batch.column(columns.label), names).to_pylist()
    keys = (f"{key}#{first + row}" for row in range(len(batch)))
    return map(partial(_make_row_item, read_path), keys, labels, data, paths)


def _make_row_item(
    read_path: Callable[[str], bytes], key: str, label: str | None, data: pa.Scalar, path: pa.Scalar
) -> ImageItem:
    encoded, name = data.as_py(), path.as_py()
    if encoded is not None and len(encoded) > MAX_BYTES:
        return make_unreadable_item(key, label, f"{len(encoded):,} bytes are more than the limit of {MAX_BYTES:,}")
    if encoded is not None:
        return ImageItem(key, label, partial(bytes, encoded))
    if name is not None:
        return ImageItem(key, label, partial(read_path, os.fsdecode(name)))
    return make_unreadable_item(key, label, _NO_IMAGE)


def _split_bytes_and_paths(image: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return a column's bytes, and its paths, which are null where it has none."""
    if not isinstance(image, pa.StructArray):
        return image, pa.nulls(len(image))
    fields = dict(zip((field.name for field in image.type), image.flatten(), strict=True))
    path = fields.get("path", pa.nulls(len(image)))
    return fields["bytes"], path.cast(pa.large_binary())  # they need not be UTF-8


def make_row_keys(key: str, count: int) -> pa.LargeBinaryArray:
    """Make the keys ``key#0``, ``key#1``, … of ``count`` rows."""
    numbers = pa.array(range(count), pa.int64()).cast(pa.large_string()).cast(pa.large_binary())
    head = pa.scalar(os.fsencode(key + "#"), pa.large_binary())
    return pc.binary_join_element_wise(head, numbers, pa.scalar(b"", pa.large_binary()))


def join_chunks(column: pa.ChunkedArray) -> pa.Array:
    """Copy a column into one array; pyarrow's own combine_chunks returns several where the text is long."""
    return pa.concat_arrays([pa.array([], column.type), *column.chunks])
