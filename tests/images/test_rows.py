"""Labels of every kind of column."""

import pyarrow as pa
import pytest

from densefeat.images.rows import _read_feature, format_labels, read_label_names


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        (pa.array([" a", None, ""]), None, ["a", None, None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["x"], ["a", "b", "a"]),
        (pa.array([3, None, -1], pa.int8()), None, ["3", None, "-1"]),
        (pa.array([0, 1, None, -1, 2, -2]), ["cat", "dog"], ["cat", "dog", None, None, "2", "-2"]),
        (pa.array([0, 2**64 - 1], pa.uint64()), ["cat"], ["cat", "18446744073709551615"]),
        (pa.array([True, None, False]), None, ["true", None, "false"]),
        (pa.array([], pa.int64()), ["cat"], []),
        (pa.array([0, 0]), [], ["0", "0"]),
        (pa.nulls(2), ["cat"], [None, None]),
        (pa.array([1.0, None, float("nan"), 0.0, -1.0]), ["cat", "dog"], ["dog", None, None, "cat", None]),
        (pa.array([1.0, -0.0, 2.5, 1e20]), None, ["1", "0", "2.5", "1e+20"]),
        (pa.array([0.1, 3.0, float("inf")], pa.float32()), None, ["0.1", "3", "inf"]),
        (pa.array([1.0, None]).dictionary_encode(), None, ["1", None]),
        (pa.array(["a", None], pa.string_view()), None, ["a", None]),
        (pa.array([b"caf\xe9", None, b""]).view(pa.string()), None, ["caf\\xe9", None, None]),
    ],
)
def test_labels_are_text(values: pa.Array, names: list[str] | None, labels: list[str | None]) -> None:
    found = format_labels(values, names)
    assert found.type == pa.large_string()
    assert found.to_pylist() == labels


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "x"},
        {"huggingface": "no JSON"},
        {"huggingface": "[]"},
        {"huggingface": '{"info": null}'},
        {"huggingface": '{"info": {"features": {"label": [1]}}}'},
        {"huggingface": '{"info": {"features": {"label": {"names": "cat"}}}}'},
        {"huggingface": b"\xff"},
        {"huggingface": "[" * 100_000},
    ],
)
def test_metadata_that_says_nothing(metadata: dict | None) -> None:
    schema = pa.schema([("label", pa.int64())], metadata)
    assert read_label_names(schema, "label") is None
    assert isinstance(_read_feature(schema, "label"), dict)
