"""Labels as text, encoded as targets."""

import numpy as np
import pytest

from densefeat.errors import UsageError
from densefeat.labels.targets import decode_labels, describe_missing, encode_labels, infer_task, match_numbers, sort_classes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "1", "9"], ["1", "9", "10"]),
        (["b", "a", "B"], ["B", "a", "b"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["2.0", "10.0", "-1.0"], ["-1.0", "2.0", "10.0"]),
        (["1", "01"], ["01", "1"]),
        (["nan", "2", "10"], ["10", "2", "nan"]),
        (["1_0", "9"], ["1_0", "9"]),
        (["٣", "10", "9"], ["10", "9", "٣"]),
        (["1e1", "+9", ".5", "5."], [".5", "5.", "+9", "1e1"]),
    ],
)
def test_order_of_classes(names: list[str], expected: list[str]) -> None:
    assert sort_classes(names) == sort_classes(names[::-1]) == expected


@pytest.mark.parametrize(
    ("texts", "task"),
    [
        (["cat", "dog"], "single"),
        (["1", "2"], "single"),
        (["1_0.5", "2_0.5"], "single"),
        (["٣.٥", "٢.٥"], "single"),
        (["1.0", "2.0"], "single"),
        (["1.5", "2"], "regression"),
        (["1e-3", "-2"], "regression"),
        (["1.5", "nan"], "regression"),  # which then names the label that is no number
        (["1.5"] * 90 + ["n/a", "NULL", "1,5"], "regression"),
        (["1.5"] * 8 + ["x", "y"], "single"),
        (["1", "2", "NA"], "single"),
        (["NA", "none"], "single"),
        (["1.5", "inf"], "single"),
        (["a|b", "c"], "multi"),
        (["1.5|2", "1"], "multi"),
    ],
)
def test_inferred_task(texts: list[str], task: str) -> None:
    assert infer_task(texts)[0] == task


def test_a_bar_in_the_name_of_a_folder_separates_nothing() -> None:
    assert infer_task(["a|b", "c"], folders=True) == ("single", "the labels are names")
    targets = encode_labels(["a|b", "c"], "single", ["", ""])
    assert (targets.classes, decode_labels(targets)) == (("a|b", "c"), ["a|b", "c"])


def test_words_for_missing_values_are_classes_of_which_it_is_said() -> None:
    assert encode_labels(["NA", "cat", "None"], "single", [""] * 3).classes == ("NA", "None", "cat")
    assert describe_missing(["NA", "None", "cat", "Nantes"]) == [
        "'NA', 'None' are classes: where a label is missing, leave the field empty"
    ]
    assert describe_missing(["nan"]) == ["'nan' is a class: where a label is missing, leave the field empty"]
    assert describe_missing(["cat"]) == []


@pytest.mark.parametrize(
    ("names", "known", "changed"),
    [
        (["1", "1.0", "2.0"], [], {"1.0": "1"}),  # 2.0 is written in one way
        (["1.0", "2.0"], [], {}),
        (["1.0", "2.0"], ["1", "2"], {"1.0": "1", "2.0": "2"}),
        (["1", "2"], ["1.0", "2.0", "3.0"], {"1": "1.0", "2": "2.0"}),
        (["1", "4"], ["1.0", "2.0"], {"1": "1.0"}),
        (["1.00", "-3."], ["1", "-3"], {"1.00": "1", "-3.": "-3"}),
        (["01", "1"], [], {}),
        (["01"], ["1"], {}),
        (["1", "1.0", "x"], [], {}),
        (["1.5", "1.50"], [], {}),
        (["1"], ["1.0", "1.00"], {}),  # which of them is not known
        (["10", "10.0"], [], {"10.0": "10"}),
        (["1_0", "1_0.0"], [], {}),
    ],
)
def test_whole_numbers_in_two_forms(names: list[str], known: list[str], changed: dict[str, str]) -> None:
    assert match_numbers(names, known) == changed


def test_numbers_of_tables_with_and_without_a_missing_value_are_the_same_classes() -> None:
    targets = encode_labels(["1", "2", "1.0", "2.0"], "single", [""] * 4)
    assert (targets.classes, targets.values.tolist()) == (("1", "2"), [0, 1, 0, 1])


def test_single_multi_and_numbers() -> None:
    targets = encode_labels(["b", "a", "b"], "single", ["", "", ""])
    assert (targets.classes, targets.values.tolist(), targets.values.dtype) == (("a", "b"), [1, 0, 1], np.int64)
    texts = ["b | a", "c", "|", "a|a"]
    targets = encode_labels(texts, "multi", [""] * 4)
    assert targets.classes == ("a", "b", "c")
    assert targets.values.tolist() == [[True, True, False], [False, False, True], [False] * 3, [True, False, False]]
    assert decode_labels(targets) == ["a|b", "c", "|", "a"]
    targets = encode_labels(["1.5", "-2"], "regression", ["", ""])
    assert (targets.classes, targets.values.tolist(), targets.values.dtype) == ((), [1.5, -2.0], np.float64)
    assert decode_labels(targets) == ["1.5", "-2"]


@pytest.mark.parametrize(
    ("texts", "task", "match"),
    [
        (["a", "a"], "single", "all labels are 'a': labels of at least two classes are needed"),
        (["a", "|"], "multi", "all labels are 'a'"),
        (["|", "|"], "multi", "no label names a class"),
        (["1", "x"], "regression", "label 'x' of 'p1' is not a finite number"),
        (["1", "nan"], "regression", "label 'nan' of 'p1' is not a finite number"),
        (["2.5", "2.50"], "regression", "all labels are 2.5: a regression needs at least two different numbers"),
    ],
)
def test_unusable_labels(texts: list[str], task: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        encode_labels(texts, task, ["p0", "p1"])  # type: ignore[arg-type]


def test_too_many_classes_for_multi_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.labels.targets._MAX_MULTI", 5)
    with pytest.raises(UsageError, match="3 classes for 2 rows are too many"):
        encode_labels(["a|b", "c"], "multi", ["", ""])
