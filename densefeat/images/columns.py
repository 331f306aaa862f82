"""Which columns of a table hold images and labels, and labels as text."""

import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from densefeat.errors import UsageError

_LABEL = "label"  # read where nothing else is asked for
_UNLABELLED = "-1"  # what datasets writes for the unknown classes of a test split


@dataclass(frozen=True, slots=True)
class Columns:
    image: str
    label: str | None

    def names(self) -> pa.StringArray:
        """For fingerprints: the same rows with images of another column are another input."""
        return pa.array([self.image, self.label], pa.string())


def choose_columns(schema: pa.Schema, image_column: str | None, label_column: str | None, images: str) -> Columns:
    """UsageError, naming the columns there are, where one is missing, cannot be what it should, or must be chosen."""
    for column in (image_column, label_column):
        check_column(schema, column, images)
    label = label_column
    if label is None and _LABEL in schema.names and is_label(schema.field(_LABEL).type):
        label = _LABEL
    if label is not None and not is_label(schema.field(label).type):
        raise UsageError(
            f"images {images!r}: column {label!r} holds {schema.field(label).type}, no labels: strings or integers"
        )
    if image_column is None:
        image_column = _only_image(schema, images)
    if not is_image(schema.field(image_column).type):
        raise UsageError(
            f"images {images!r}: column {image_column!r} holds {schema.field(image_column).type}, no encoded images"
        )
    return Columns(image_column, label)


def check_column(schema: pa.Schema, column: str | None, images: str) -> None:
    if column is not None and schema.get_field_index(column) < 0:
        what = "more than one column" if column in schema.names else "no column"
        raise UsageError(f"images {images!r}: {what} {column!r}: it has {', '.join(schema.names)}")


def _only_image(schema: pa.Schema, images: str) -> str:
    """The column that is declared an image, else the only one that can be."""
    fitting = image_columns(schema)
    declared = [name for name in fitting if _declared_as(schema, name).get("_type") == "Image"]
    candidates = declared or fitting
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UsageError(f"images {images!r}: more than one column of images: choose one of {', '.join(candidates)}")
    raise UsageError(f"images {images!r}: no column of encoded images: it has {', '.join(schema.names)}")


def image_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if is_image(field.type)]


def is_image(kind: pa.DataType) -> bool:
    """Binary, or datasets' struct of ``bytes`` and ``path``."""
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_image(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def is_label(kind: pa.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return is_text(kind) or types.is_integer(kind) or types.is_boolean(kind)


def _declared_as(schema: pa.Schema, column: str) -> dict:
    """What datasets wrote of a column; empty where it is not written, or not understood."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return feature if isinstance(feature, dict) else {}


def class_names(schema: pa.Schema, column: str | None) -> list[str] | None:
    """Names of datasets' ClassLabel."""
    names = _declared_as(schema, column).get("names") if column else None
    return list(map(str, names)) if isinstance(names, list) else None


def labels_of(values: pa.Array, names: list[str] | None) -> pa.LargeStringArray:
    """Labels as text: names of classes where integers have them, the numbers else; null stays null."""
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    text = _valid_text(values)
    if names is None or not types.is_integer(values.type):
        return text
    numbers = pa.array(map(str, range(len(names))), pa.large_string())
    named = pa.array(names, pa.large_string()).take(pc.index_in(text, numbers))
    return pc.coalesce(named, pc.if_else(pc.equal(text, _UNLABELLED), None, text))


def _valid_text(values: pa.Array) -> pa.LargeStringArray:
    """As text, with escapes for bytes that are not UTF-8: Parquet does not promise that they are."""
    if not is_text(values.type):
        return values.cast(pa.large_string())
    data = values.cast(pa.large_binary())
    try:
        return data.cast(pa.large_string())
    except pa.ArrowInvalid:
        texts = (value and value.decode("utf-8", "backslashreplace") for value in data.to_pylist())
        return pa.array(texts, pa.large_string())
