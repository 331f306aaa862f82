"""Reading a store back: columns, ranges, failures, and what is wrong with damaged ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import densefeat
from densefeat.errors import OutputError, UsageError
from densefeat.store.manifest import Failure
from densefeat.store.reader import is_store
from densefeat.store.writer import METADATA_KEY, EmbeddingWriter, make_embedding_schema
from support.stores import PROVENANCE, random_features, write_rows, write_store


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_folder(tmp_path: Path, dtype: str) -> None:
    failure = Failure("bad.jpg", "decode", "no image", 3, 4)
    features = write_store(tmp_path / "s", rows=25, dtype=dtype, failures=(failure,))
    store = densefeat.open_store(tmp_path / "s")
    assert len(store) == 25
    assert len(store.parts) == 3
    assert store.complete
    assert store.shapes == {"block1": (3,), "block2": (5,)}
    assert store.provenance == PROVENANCE
    assert store.failures == [failure]
    for name, values in features.items():
        assert store[name].dtype == dtype
        assert np.array_equal(store[name], values)
    assert store.keys[[0, 24]].tolist() == ['é/00, "0".jpg', 'é/24, "24".jpg']
    assert store.labels is not None
    assert store.labels[:3].tolist() == [None, "cat", "dog"]
    assert np.array_equal(store["width"], np.arange(25))
    assert repr(store).endswith("25 rows, block1 (3,), block2 (5,))")
    assert store.dataset().count_rows() == 25


def test_a_process_that_reads_ends_well(tmp_path: Path) -> None:
    """pyarrow's threads may outlive the interpreter: they must not free anything of Python's then."""
    write_store(tmp_path / "store", failures=(Failure("a.jpg", "decode", "broken"),))
    script = "import sys, densefeat; store = densefeat.open_store(sys.argv[1]); store.failures, store.labels, store.keys"
    for _ in range(4):
        run = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "store")], capture_output=True, text=True, timeout=60
        )
        assert (run.returncode, run.stderr) == (0, "")


def test_single_file(tmp_path: Path) -> None:
    features = random_features(4, {"block1": (2, 3, 4)})
    write_rows(tmp_path / "e.parquet", features, 0, 4, labelled=False)
    failures = [{"path": "a", "stage": "decode", "reason": "b"}, {"path": "c", "stage": "read", "reason": "d", "x": 1, "y": 2}]
    (tmp_path / "e.failures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in failures))
    store = densefeat.open_store(str(tmp_path / "e.parquet"))
    assert store.shapes == {"block1": (2, 3, 4)}
    assert np.array_equal(store["block1"], features["block1"].reshape(4, 24))
    assert store.labels is None
    assert store.provenance["model"] == "made-up"
    assert store.failures == [Failure("a", "decode", "b"), Failure("c", "read", "d", 1, 2)]
    (tmp_path / "e.failures.jsonl").unlink()
    assert store.failures == []


RANGES = [(0, 25), (0, 0), (25, 25), (9, 11), (10, 20), (3, 4), (24, 25), (10, 10), (7, 23)]


def test_ranges_over_parts_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.store.writer._ROW_GROUP_BYTES", 64)
    monkeypatch.setattr("densefeat.store.reader._PIECE_BYTES", 24)
    features = write_store(tmp_path / "s", rows=25, part_rows=10)
    path = tmp_path / "e.parquet"
    with EmbeddingWriter(path, make_embedding_schema({"block1": (3,)}, {})) as writer:
        for i in range(25):
            plain = {"path": [str(i)], "width": [i], "height": [0]}
            writer.append(plain, {"block1": features["block1"][i : i + 1]})
    assert pq.read_metadata(path).num_row_groups > 5
    for place in (tmp_path / "s", path):
        store = densefeat.open_store(place)
        for start, stop in RANGES:
            assert np.array_equal(store.read("block1", start, stop), features["block1"][start:stop]), (start, stop)
            assert store.read("width", start, stop).tolist() == list(range(start, stop))


@pytest.mark.parametrize(("rows", "sizes"), [(7, [7, 3, 7, 3, 5]), (10, [10, 10, 5]), (24, [20, 5]), (None, [25])])
def test_batches_end_with_parts(tmp_path: Path, rows: int | None, sizes: list[int]) -> None:
    features = write_store(tmp_path / "s", rows=25)
    batches = list(densefeat.open_store(tmp_path / "s").batches("block2", rows))
    assert [len(values) for _, values in batches] == sizes
    assert [first for first, _ in batches] == [0, *np.cumsum(sizes)[:-1]]
    assert np.array_equal(np.concatenate([values for _, values in batches]), features["block2"])


def test_record_batches_have_columns_in_the_requested_order(tmp_path: Path) -> None:
    features = write_store(tmp_path / "s", rows=25)
    batches = list(densefeat.open_store(tmp_path / "s").record_batches(["block2", "path"]))
    assert batches[0].schema.names == ["block2", "path"]
    values = [batch.column(0).flatten().to_numpy().reshape(-1, 5) for batch in batches]
    assert np.array_equal(np.concatenate(values), features["block2"])


def test_names_that_are_the_start_of_others(tmp_path: Path) -> None:
    """Columns of models whose features have their modules' names."""
    features = random_features(4, {"norm.a": (2,), "norm": (3,)})
    write_rows(tmp_path / "e.parquet", features, 0, 4)
    store = densefeat.open_store(tmp_path / "e.parquet")
    assert np.array_equal(store["norm"], features["norm"])
    assert np.array_equal(store["norm.a"], features["norm.a"])


def test_opening_looks_at_every_footer(tmp_path: Path) -> None:
    write_store(tmp_path / "s")
    (tmp_path / "s/data/part-00001.parquet").write_bytes(b"damaged")
    with pytest.raises(OutputError, match=r"1 of 3 parts are missing or damaged \(.*part-00001\.parquet: damaged"):
        densefeat.open_store(tmp_path / "s")


def test_one_column_does_not_touch_the_others(tmp_path: Path) -> None:
    features = write_store(tmp_path / "s", rows=10)
    part = tmp_path / "s/data/part-00000.parquet"
    group = pq.read_metadata(part).row_group(0)
    [column] = [column for i in range(group.num_columns) if (column := group.column(i)).path_in_schema.startswith("block1")]
    content = bytearray(part.read_bytes())
    content[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = bytes(
        column.total_compressed_size
    )
    part.write_bytes(content)
    store = densefeat.open_store(tmp_path / "s")
    assert np.array_equal(store["block2"], features["block2"])
    with pytest.raises(OutputError, match=r"part-00000\.parquet: damaged: its columns block1 are not as they were written"):
        store["block1"]


def test_unfinished(tmp_path: Path) -> None:
    failure = Failure("bad.jpg", "decode", "no image")
    features = write_store(tmp_path / "s", failures=(failure,), finished=2)
    store = densefeat.open_store(tmp_path / "s")
    assert not store.complete
    assert store.progress == (20, 30)
    assert np.array_equal(store["block1"], features["block1"][:20])
    assert store.failures == [failure]


def test_started_and_without_parts(tmp_path: Path) -> None:
    write_store(tmp_path / "s", finished=0)
    store = densefeat.open_store(tmp_path / "s")
    assert (len(store), store.shapes, store.failures, store.progress) == (0, {}, [], (0, 30))
    with pytest.raises(UsageError, match="has no column 'block1': it has no rows yet"):
        store["block1"]
    assert list(store.record_batches([])) == []


def test_no_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "e.parquet", random_features(0), 0, 0)
    store = densefeat.open_store(tmp_path / "e.parquet")
    assert store["block1"].shape == (0, 3)
    assert store.keys.tolist() == []
    assert list(store.batches("block1")) == []


def other_rows(root: Path) -> None:
    write_rows(root / "data/part-00001.parquet", random_features(9), 0, 9)


def other_columns(root: Path) -> None:
    write_rows(root / "data/part-00001.parquet", random_features(10, {"block1": (4,)}), 0, 10)


def newer_folder(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))


def newer_single(root: Path) -> None:
    table = pq.read_table(root / "data/part-00000.parquet")
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: b'{"format_version": 99}'}), root.with_name("new.parquet"))


@pytest.mark.parametrize(
    ("name", "damage", "match"),
    [
        ("s", lambda root: (root / "data/part-00001.parquet").unlink(), r"1 of 3 parts are missing or damaged .*part-00001"),
        ("s", lambda root: (root / "failures.parquet").write_bytes(b"x"), r"failures\.parquet: damaged, or another file"),
        ("s", lambda root: (root / "manifest.json").write_text("{"), "not a readable manifest"),
        ("s", other_rows, r"part-00001\.parquet: damaged: it has \d,\d+ bytes, not"),
        ("s", other_columns, r"part-00001\.parquet: damaged: it has \d,\d+ bytes, not"),
        ("s", newer_folder, "99"),
        ("new.parquet", newer_single, "format version 99; this densefeat reads up to 3: update it"),
        ("e.parquet", lambda root: root.with_name("e.failures.jsonl").write_text("no"), "e.failures.jsonl: cannot be read"),
    ],
)
def test_damaged(tmp_path: Path, name: str, damage, match: str) -> None:
    write_store(tmp_path / "s")
    write_rows(tmp_path / "e.parquet", random_features(4), 0, 4)
    damage(tmp_path / "s")
    with pytest.raises(OutputError, match=match):
        store = densefeat.open_store(tmp_path / name)
        store["block1"], store.failures


def write_single(path: Path, columns: dict[str, pa.Array | None]) -> Path:
    """Write a store of three rows as a stranger might: with these columns in place of its own; None: without it."""
    write_rows(path, random_features(3), 0, 3)
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.drop_columns([name] if name in table.column_names else [])
        table = table if values is None else table.append_column(name, values)
    pq.write_table(table, path)
    return path


NO_TEXT = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())
TEXTS, NO_VECTORS = pa.array(["a", "b", "c"]), pa.array([[]] * 3, pa.list_(pa.float32(), 0))


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"path": None}, r"e\.parquet: damaged: its columns are label, width"),
        ({"block1": None, "block2": None}, "damaged: its columns are path, label, width, height$"),
        ({"path": NO_TEXT}, "Invalid UTF8 sequence at string index 1"),
        ({"label": NO_TEXT}, "Invalid UTF8 sequence at string index 1"),
        ({"path": pa.array([1, 2, 3])}, "its column 'path' is of type int64"),
        ({"path": pa.array(["a", None, "c"])}, "its column 'path' is empty in 1 rows"),
        ({"label": pa.array([b"a", b"b", b"c"])}, "its column 'label' is of type binary"),
        ({"width": TEXTS}, "its column 'width' is of type string"),
        ({"block1": NO_VECTORS}, r"its column 'block1' is of type fixed_size_list<.*>\[0\]"),
        ({"block1": pa.array([["a"]] * 3, pa.list_(pa.string(), 1))}, "its column 'block1' is of type fixed_size_list"),
        ({"block1": pa.array([[1, 2, 3], None, [1, 2, 3]], pa.list_(pa.float32(), 3))}, "'block1' is empty in 1 rows"),
    ],
)
def test_columns_that_no_store_has(tmp_path: Path, columns: dict[str, pa.Array], match: str) -> None:
    path = write_single(tmp_path / "e.parquet", columns)
    for read in (
        lambda store: (store.keys, store.labels, store["block1"]),
        lambda store: list(store.record_batches(store.schema.names)),
    ):
        with pytest.raises(OutputError, match=match):
            read(densefeat.open_store(path))


def state_rows(path: Path, stated: int, places: slice) -> None:
    """Let a file of 1,000 rows state another number of them, in some of the places where its footer does."""
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    real, false = encode_count(1000), encode_count(stated)
    pieces = content[start:-8].split(real)
    footer = pieces[0]
    for number, piece in enumerate(pieces[1:]):
        footer += (false if number in range(len(pieces) - 1)[places] else real) + piece
    path.write_bytes(content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def encode_count(number: int) -> bytes:
    """Encode a number of at least 0 as Parquet's footers do: seven bits a byte, of twice the number."""
    groups = [2 * number >> shift & 127 for shift in range(0, (2 * number).bit_length(), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


EVERYWHERE, FILE, GROUP = slice(None), slice(1), slice(-1, None)


@pytest.mark.parametrize(
    ("stated", "places", "match"),
    [
        (8000, FILE, r"e\.parquet: damaged: it states 8000 rows, its row groups 1000"),
        (8000, GROUP, "damaged: it states 1000 rows, its row groups 8000"),
        (8000, EVERYWHERE, "damaged: row group 0 has 1,000 rows and states 8,000"),
        (2**40, EVERYWHERE, "damaged: row group 0 has 1,000 rows and states 1,099,511,627,776|no memory for 1,099,511,627,776"),
    ],
)
def test_rows_that_a_file_only_states(tmp_path: Path, stated: int, places: slice, match: str) -> None:
    """pyarrow believes them: it allocates memory for all of them, which would be the rows, with what was there before."""
    path = tmp_path / "e.parquet"
    write_rows(path, random_features(1000), 0, 1000)
    pq.write_table(pq.read_table(path), path)
    state_rows(path, 1000, EVERYWHERE)
    assert len(densefeat.open_store(path).keys) == 1000
    state_rows(path, stated, places)
    for name in ("block1", "path", "width"):
        with pytest.raises(OutputError, match=match):
            densefeat.open_store(path)[name]


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pq.read_table(write_single(tmp_path / "e.parquet", {}))
    pq.write_table(table.append_column("path", TEXTS), tmp_path / "e.parquet")
    with pytest.raises(OutputError, match="damaged: its columns are path, label, .*, path$"):
        densefeat.open_store(tmp_path / "e.parquet")


def test_columns_of_other_programs(tmp_path: Path) -> None:
    """They may write text with long offsets, values that may be empty, and columns of the user's."""
    columns = {"path": TEXTS.cast(pa.large_string()), "mine": pa.array([{"a": 1}, None, None])}
    store = densefeat.open_store(write_single(tmp_path / "e.parquet", columns))
    assert (store.keys.tolist(), store["mine"].tolist()) == (["a", "b", "c"], [{"a": 1}, None, None])


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", r"no manifest\.json in it"),
        ("text.parquet", "not a Parquet file"),
        ("foreign.parquet", "not of densefeat"),
    ],
)
def test_no_store(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("text")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(UsageError, match=match):
        densefeat.open_store(tmp_path / name)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 31)])
def test_missing_rows_and_columns(tmp_path: Path, start: int, stop: int) -> None:
    write_store(tmp_path / "s")
    with pytest.raises(UsageError, match=f"rows {start} to {stop} of .*: it has 30"):
        densefeat.open_store(tmp_path / "s").read("block1", start, stop)


def test_is_store(tmp_path: Path) -> None:
    write_store(tmp_path / "s")
    write_rows(tmp_path / "e.parquet", random_features(4), 0, 4)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "file").write_bytes(b"x")
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_store(path)] == ["e.parquet", "s"]
    assert not is_store(tmp_path / "nowhere")
    newer_folder(tmp_path / "s")
    assert is_store(tmp_path / "s")
    (tmp_path / "s/manifest.json").write_text("{")  # damaged: opening it says so
    assert is_store(tmp_path / "s")
