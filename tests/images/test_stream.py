"""Parts of a source, and what tells two inputs apart."""

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat.images.sources import open_source
from densefeat.images.stream import _READ_OVER, ImageItem, SelectedSource, find_repeats, hash_columns, printable_key
from densefeat.images.tables import TableRows
from support.streams import read_source


def table(path: Path, count: int) -> TableRows:
    pq.write_table(pa.table({"image": [b"%d" % i for i in range(count)], "label": range(count)}), path)
    return open_source(path)


@pytest.mark.parametrize(
    "positions",
    [[], [0], [3, 4, 5], [0, 2, 4, 5], [5, 0, 0, 5, 4], [1, 2, _READ_OVER + 3, 2 * _READ_OVER + 3, 2 * _READ_OVER + 4]],
)
def test_some_positions_in_an_order(positions: list[int], tmp_path: Path) -> None:
    selected = SelectedSource(table(tmp_path / "x.parquet", 2 * _READ_OVER + 5), np.array(positions, np.int64))
    assert read_source(selected) == [(f"x.parquet#{i}", str(i), b"%d" % i) for i in positions]
    assert selected.labelled


def test_near_positions_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = table(tmp_path / "x.parquet", 5000)
    entered = []
    rows = TableRows.rows
    monkeypatch.setattr(TableRows, "rows", lambda self, start: entered.append(start) or rows(self, start))
    positions = np.array([10, 500, 501, 1400, 4000, 4001])
    assert len(list(SelectedSource(source, positions).items(0, 9))) == 6
    assert entered == [10, 4000]


def test_a_selection_is_identified_by_source_and_positions(tmp_path: Path) -> None:
    one, two = table(tmp_path / "x.parquet", 5), table(tmp_path / "y.parquet", 5)
    selections = [SelectedSource(source, np.array(some)) for source in (one, two) for some in ([1, 2], [2, 1], [1, 2, 3])]
    assert len({selection.fingerprint() for selection in selections}) == 6
    assert SelectedSource(one, np.array([1, 2], np.int32)).fingerprint() == selections[0].fingerprint()


def test_fingerprints_do_not_depend_on_the_layout() -> None:
    values = ["a", None, "", "bc"]
    texts = pa.array(values)
    same = [texts, texts.cast(pa.large_string()), texts.dictionary_encode(), pa.array(["x", *values])[1:], texts.cast(pa.large_binary())]  # fmt: skip
    assert len({hash_columns(column) for column in same}) == 1
    others = [[texts, None], [None], [], [pa.array(["a", "", None, "bc"])], [pa.array(["ab", None, "", "c"])], [texts, texts]]
    assert len({hash_columns(*columns) for columns in [*others, [texts]]}) == 7


def test_repeated_keys() -> None:
    keys = pa.array([b"a", b"b", b"a", b"c", b"b", b"a"], pa.large_binary())
    assert find_repeats(keys).tolist() == [False, False, True, False, True, True]
    assert find_repeats(pa.array([], pa.large_binary())).tolist() == []


def test_keys_are_printable() -> None:
    assert printable_key("größe") == "größe"
    assert printable_key(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


def test_items_can_be_pickled(tmp_path: Path) -> None:
    (item,) = pickle.loads(pickle.dumps(list(table(tmp_path / "x.parquet", 1).items(0, 1))))
    assert isinstance(item, ImageItem)
    assert item.read() == b"0"
