"""The recorded stamps of a store: which entry of a file counts, and that those of another job do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from densefeat.errors import OutputError
from densefeat.images import Stamps
from densefeat.store.layout import Layout
from densefeat.store.manifest import Manifest, Round
from densefeat.store.stamps import read_stamps, write_stamps

MANIFEST = Manifest({}, {}, "photos/", (Round(0, "", "", 2),), job="job")
UPDATED = replace(MANIFEST, rounds=(*MANIFEST.rounds, Round(1, "", "", 2)))


def make_stamps(**stamps: str | None) -> Stamps:
    return Stamps(pa.array(list(stamps), pa.large_string()), pa.array(list(stamps.values()), pa.large_string()))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Three files of the first round, of one of which nothing is known."""
    layout = Layout(tmp_path)
    recorded = read_stamps(layout, MANIFEST)
    everything = np.ones(3, bool)
    write_stamps(layout, MANIFEST, recorded.add(make_stamps(a="1", b="1", c=None), everything, 1, ~everything))
    return layout


@pytest.mark.parametrize(
    ("now", "changed", "missing"),
    [
        (dict(a="1", b="1", c=None), [], []),
        (dict(a="1", b="2", c=None), ["b"], []),
        (dict(b="2", d="1"), ["b"], ["d"]),
        (dict(a=None, c="1"), [], ["c"]),
    ],
)
def test_what_has_changed(now: dict[str, str | None], changed: list[str], missing: list[str], layout: Layout) -> None:
    recorded, stamps, names = read_stamps(layout, MANIFEST), make_stamps(**now), np.array(list(now))
    assert names[recorded.find_changed(stamps)].tolist() == changed
    assert names[recorded.find_missing(stamps)].tolist() == missing


def test_the_last_round_of_a_file_counts(layout: Layout) -> None:
    now, again = make_stamps(a="2", d="1"), np.array([True, False])
    write_stamps(layout, UPDATED, read_stamps(layout, MANIFEST).add(now, np.ones(2, bool), 2, again))
    assert not read_stamps(layout, UPDATED).find_changed(now).any()
    assert read_stamps(layout, UPDATED).find_again(now.files, 2).tolist() == [True, False]
    # a manifest that does not have that round yet, since the process ended between both files
    assert read_stamps(layout, MANIFEST).find_changed(now).tolist() == [True, False]
    assert read_stamps(layout, MANIFEST).find_missing(now).tolist() == [False, True]
    dropped = replace(UPDATED, rounds=(MANIFEST.rounds[0], replace(UPDATED.rounds[1], dropped=True)))
    assert read_stamps(layout, dropped).find_changed(now).tolist() == [True, False]


def test_one_entry_a_file_of_closed_rounds(layout: Layout) -> None:
    third = replace(UPDATED, rounds=(*UPDATED.rounds, Round(2, "", "", 1)))
    recorded = read_stamps(layout, MANIFEST)
    for number in (2, 3):
        recorded = recorded.add(make_stamps(a=str(number)), np.ones(1, bool), number, np.ones(1, bool))
    write_stamps(layout, third, recorded)
    table = read_stamps(layout, third).table
    assert sorted(zip(table["file"].to_pylist(), table["round"].to_pylist(), strict=True)) == [
        ("a", 2), ("a", 3), ("b", 1), ("c", 1),
    ]  # fmt: skip


def test_stamps_of_another_job_do_not_count(layout: Layout) -> None:
    assert len(read_stamps(layout, MANIFEST).table) == 3
    assert len(read_stamps(layout, replace(MANIFEST, job="other")).table) == 0


@pytest.mark.parametrize("content", [b"", b"PAR1 damaged"])
def test_damaged_stamps_are_reported(content: bytes, layout: Layout) -> None:
    layout.stamps.write_bytes(content)
    with pytest.raises(OutputError, match=r"stamps.parquet: damaged .*without it changes of images so far go unnoticed"):
        read_stamps(layout, MANIFEST)
