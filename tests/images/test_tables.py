"""Parquet files with images: columns, keys, places to start at, and damage."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat import UsageError
from densefeat.errors import DecodeError
from densefeat.images.sources import open_source
from support.parquet_files import change_footer, encode_integer, read_footer, write_footer
from support.streams import make, outcomes, read_source

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def images(count: int, first: int = 0) -> pa.Array:
    return pa.array([{"bytes": b"image %d" % i, "path": f"{i}.png"} for i in range(first, first + count)], STRUCT)


def write(path: Path, columns: dict, features: dict | None = None, **options: object) -> Path:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def test_the_layout_of_datasets(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    labels = [0, 1, None, -1, 7]
    path = write(tmp_path / "x.parquet", {"image": images(5), "label": labels}, features, row_group_size=2)
    named = ["cat", "dog", None, None, "7"]
    assert read_source(open_source(path)) == [(f"x.parquet#{i}", named[i], b"image %d" % i) for i in range(5)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_plain_columns(kind: pa.DataType, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"n": [1, 2], "picture": pa.array([b"one", b""], kind), "kind": ["a", None]})
    assert read_source(open_source(path)) == [("x.parquet#0", None, b"one"), ("x.parquet#1", None, b"")]
    labels = [label for _, label, _ in read_source(open_source(path, label_column="kind"))]
    assert labels == ["a", None]
    assert [label for _, label, _ in read_source(open_source(path, label_column="n"))] == ["1", "2"]


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    columns = {"thumb": pa.array([b"t"]), "image": images(1), "mask": images(1, 10), "label": ["x"]}
    declared = write(tmp_path / "declared.parquet", columns, {"image": {"_type": "Image"}, "thumb": {"_type": "Value"}})
    assert read_source(open_source(declared)) == [("declared.parquet#0", "x", b"image 0")]
    assert read_source(open_source(declared, image_column="mask")) == [("declared.parquet#0", "x", b"image 10")]
    assert read_source(open_source(declared, image_column="thumb")) == [("declared.parquet#0", "x", b"t")]
    prints = [open_source(declared, image_column=column).fingerprint() for column in (None, "image", "mask", "thumb")]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    with pytest.raises(UsageError, match="more than one column of images: choose one of thumb, image, mask"):
        open_source(write(tmp_path / "open.parquet", columns))


def test_globs_braces_and_folders(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{'ab'[i % 2]}/part-{i:03}.parquet", {"image": images(2, 2 * i)})
    even = [(f"part-{i:03}.parquet#{row}", None, b"image %d" % (2 * i + row)) for i in range(0, 12, 2) for row in (0, 1)]
    assert read_source(open_source(f"{tmp_path}/a/*.parquet")) == even
    some = open_source(f"{tmp_path}/{{b,a}}/part-00[0-3].parquet")
    assert [key for key, _, _ in read_source(some)][::2] == [f"{key}.parquet#0" for key in ("b/part-001", "b/part-003", "a/part-000", "a/part-002")]  # fmt: skip
    with pytest.raises(UsageError, match=r"no such file: .*part-001.parquet"):
        open_source(f"{tmp_path}/a/part-{{000..002}}.parquet")
    with pytest.raises(UsageError, match="no such file"):
        open_source(f"{tmp_path}/a/*.x.parquet")


def test_rows_with_a_path_only_or_with_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "in", "deep/a.png")
    make(tmp_path, "secret.png")
    rows = [
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": "../../secret.png"},
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"x", "path": "../../secret.png"},
    ]
    write(folder / "deep/x.parquet", {"image": pa.array(rows, STRUCT)})
    write(folder / "y.parquet", {"image": images(1)})
    (folder / "deep/link.png").symlink_to(tmp_path / "secret.png")
    write(folder / "deep/z.parquet", {"image": pa.array([{"bytes": None, "path": "link.png"}], STRUCT)})
    source = open_source(f"{folder}/**/[xz].parquet")
    outside, nothing = "outside of the folder", "neither bytes nor a path in this row"
    wanted = [b"deep/a.png", outside, outside, nothing, nothing, b"x", "a symbolic link out of the folder"]
    assert [outcome for _, _, outcome in read_source(source)] == wanted


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    odd = pa.array([b"caf\xe9.png"]).view(pa.string())
    image = pa.StructArray.from_arrays([pa.nulls(1, pa.binary()), odd], ["bytes", "path"])
    path = write(tmp_path / "x.parquet", {"image": image, "label": odd})
    assert read_source(open_source(path)) == [("x.parquet#0", "caf\\xe9.png", "the name is not valid UTF-8")]


NULLS = pa.nulls(2)
CATS = pa.array(["cat", "dog"])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("labels", "wanted", "said"),
    [
        ((CATS, NULLS), ["cat", "dog", None, None], None),
        ((CATS, None), ["cat", "dog", None, None], "no column 'label' of text or numbers"),
        ((CATS, pa.array([[1], [2]])), ["cat", "dog", None, None], "no column 'label' of text or numbers"),
        ((pa.array([1, 2]), pa.array([3.0, None])), ["1", "2", "3", None], None),
        ((pa.array([1, 2], pa.uint8()), pa.array([3.0, float("nan")], pa.float32())), ["1", "2", "3", None], None),
        ((CATS, CATS.cast(pa.string_view())), ["cat", "dog", "cat", "dog"], None),
        ((CATS, CATS.dictionary_encode()), ["cat", "dog", "cat", "dog"], None),
    ],
)
def test_labels_of_files_of_different_types(
    labels: tuple, wanted: list, said: str | None, asked: bool, order: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No image is lost for its label, and no label for those of other files, whichever file comes first."""
    for number in range(2):
        column = labels[number]
        write(tmp_path / f"{order.index(number)}.parquet", {"image": images(2)} | ({} if column is None else {"label": column}))
    source = open_source(f"{tmp_path}/*.parquet", label_column="label" if asked else None)
    found = read_source(source)
    assert [label for _, label, _ in found] == [wanted[2 * number + row] for number in order for row in (0, 1)]
    assert [outcome for _, _, outcome in found] == [b"image 0", b"image 1"] * 2
    assert source.label_values().to_pylist() == [label for _, label, _ in found]
    assert (said in caplog.text) if said else not caplog.records


def test_classes_are_named_by_the_files_that_have_labels(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    write(tmp_path / "a.parquet", {"image": images(2), "label": NULLS})
    write(tmp_path / "b.parquet", {"image": images(2), "label": [1, 0]}, features)
    source = open_source(f"{tmp_path}/*.parquet")
    assert source.class_names() == ["cat", "dog"]
    assert source.label_values().to_pylist() == [None, None, "dog", "cat"]


def test_no_labels_in_any_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.parquet", {"image": images(2), "label": NULLS})
    assert not open_source(tmp_path / "a.parquet").labelled
    assert not caplog.records
    write(tmp_path / "a.parquet", {"image": images(2), "label": [[1], [2]]})
    assert not open_source(tmp_path / "a.parquet").labelled
    assert "column 'label' is not read: it holds list<element: int64>, no labels" in caplog.text


def test_files_without_images_count_as_their_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["x", "y", "z"], "label": [1, 2, 3]}, row_group_size=2)
    write(tmp_path / "b.parquet", {"image": images(2), "label": [4, 5]})
    write(tmp_path / "c.parquet", {"text": pa.array([], pa.string())})
    source = open_source(f"{tmp_path}/*.parquet", label_column="label")
    assert read_source(source) == [
        *((f"a.parquet#{row}", None, "no column 'image': it has text, label") for row in range(3)),
        *((f"b.parquet#{row}", str(4 + row), b"image %d" % row) for row in range(2)),
    ]
    assert source.group_sizes().tolist() == [2, 1, 2, 0]
    assert [source.key(position) for position in (0, 2, 3)] == ["a.parquet#0", "a.parquet#2", "b.parquet#0"]
    reader = source.reader()
    assert reader.read(4) == b"image 1"
    with pytest.raises(DecodeError, match="no column 'image'"):
        reader.read(1)


def test_damaged_files_among_good_ones(tmp_path: Path) -> None:
    for name in "abcde":
        write(tmp_path / f"{name}.parquet", {"image": images(3), "label": [1, 2, 3]})
    cut = tmp_path / "b.parquet"
    cut.write_bytes(cut.read_bytes()[:-20])
    write(tmp_path / "c.parquet", {"picture": images(3)})
    write(tmp_path / "d.parquet", {"image": [1, 2, 3], "label": [1, 2, 3]})
    (tmp_path / "f.parquet").mkdir()
    (tmp_path / "g.parquet").symlink_to("a.parquet")
    found = read_source(open_source(f"{tmp_path}/*.parquet"))
    assert [key for key, _, _ in found] == [
        *(f"a.parquet#{i}" for i in range(3)),
        "b.parquet",
        *(f"{name}.parquet#{i}" for name in "cd" for i in range(3)),
        *(f"e.parquet#{i}" for i in range(3)),
        *(f"g.parquet#{i}" for i in range(3)),
    ]
    reasons = {key: outcome for key, _, outcome in found if isinstance(outcome, str)}
    assert reasons.pop("b.parquet").startswith("not a Parquet file, or damaged: ")
    assert reasons == {
        **{f"c.parquet#{i}": "no column 'image': it has picture" for i in range(3)},
        **{f"d.parquet#{i}": "column 'image' holds int64, unlike that of other files" for i in range(3)},
    }


def test_a_damaged_row_group_loses_only_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, {"image": images(9), "label": range(9)}, row_group_size=3, compression="none", use_dictionary=False, write_page_checksum=True)  # fmt: skip
    data = bytearray(path.read_bytes())
    data[data.index(b"image 4") + 6] ^= 1
    path.write_bytes(data)
    source = open_source(path)
    found = read_source(source)
    assert [key for key, _, _ in found] == [f"x.parquet#{i}" for i in range(9)]
    assert [outcome for _, _, outcome in found[:3] + found[6:]] == [b"image %d" % i for i in (0, 1, 2, 6, 7, 8)]
    assert all(outcome.startswith("damaged Parquet: ") for _, _, outcome in found[3:6])
    assert outcomes(source.items(4, 8)) == found[4:8]


def test_earlier_row_groups_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": images(9)}, row_group_size=3, compression="none", use_dictionary=False)
    source = open_source(path)
    data = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    chunks = [metadata.row_group(group).column(0) for group in (0, 1)]
    for chunk in chunks:
        data[chunk.data_page_offset : chunk.data_page_offset + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    assert outcomes(source.items(7, 9)) == [(f"x.parquet#{i}", None, b"image %d" % i) for i in (7, 8)]
    assert isinstance(outcomes(source.items(0, 1))[0][2], str)


def test_a_range_after_the_last_goes_on_without_opening_the_file_again(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.parquet", {"image": images(100)}))
    begun = outcomes(source.items(0, 10))
    (tmp_path / "x.parquet").rename(tmp_path / "moved.parquet")
    assert outcomes(source.items(10, 100))[-1] == ("x.parquet#99", None, b"image 99")
    assert begun[9][2] == b"image 9"
    assert outcomes(source.items(0, 1)) == [("x.parquet#0", None, "No such file or directory")]


def test_crafted_files_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.images.rows.MAX_BYTES", 1000)
    monkeypatch.setattr("densefeat.images.tables._MAX_ROWS", 1000)
    large = write(tmp_path / "large.parquet", {"image": [b"x" * 1000, b"x" * 1001]})
    assert read_source(open_source(large))[1] == ("large.parquet#1", None, "1,001 bytes are more than the limit of 1,000")
    many = write(tmp_path / "many.parquet", {"image": pa.array([b"x"] * 1001)})
    with pytest.raises(UsageError, match="a Parquet file of 1,001 rows: at most 1,000 are read of one of its size"):
        open_source(many)
    monkeypatch.setattr("densefeat.images.tables._MAX_REFUSED_ROWS", 2)
    write(tmp_path / "x/a.parquet", {"image": [b"x"]})
    for count, name in enumerate("bc", 2):
        write(tmp_path / f"x/{name}.parquet", {"text": ["y"] * count})
    keys = open_source(f"{tmp_path}/x/*.parquet").keys().to_pylist()
    assert keys == [b"a.parquet#0", b"b.parquet#0", b"b.parquet#1", b"c.parquet"]


POOLS: list[pa.MemoryPool] = []  # kept, since the arrays of an error's frames are freed later than the test ends


@pytest.fixture
def pool() -> Iterator[pa.MemoryPool]:
    """Arrow's, as used by one test."""
    default = pa.default_memory_pool()
    own = pa.proxy_memory_pool(default)
    POOLS.append(own)
    pa.set_memory_pool(own)
    yield own
    pa.set_memory_pool(default)


def repeat(value: bytes | str, rows: int) -> pa.Array:
    """Make a column in which all rows refer to one value."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def hide_dictionary(path: Path) -> None:
    """Let a footer not say where the dictionary is, which pyarrow finds all the same."""
    chunk = pq.read_metadata(path).row_group(0).column(0)
    places = b"\x26" + encode_integer(chunk.data_page_offset) + b"\x26" + encode_integer(chunk.dictionary_page_offset)
    change_footer(path, places + b"\x1c", b"\x26" + encode_integer(chunk.dictionary_page_offset) + b"\x3c")
    assert not pq.read_metadata(path).row_group(0).column(0).has_dictionary_page


def rename_column(path: Path) -> None:
    """Let a footer name another column where the place of this one is described."""
    footer = read_footer(path)
    head, _, tail = footer.rpartition(b"\x18\x05image")
    write_footer(path, head + b"\x18\x05imagf" + tail)


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("craft", [None, hide_dictionary, rename_column])
def test_one_image_in_many_rows_is_copied_few_times(
    craft: Callable[[Path], None] | None, struct: bool, tmp_path: Path, pool: pa.MemoryPool
) -> None:
    picture = bytes(2**22)
    column = repeat(picture, 1000)
    if struct:
        column = pa.StructArray.from_arrays([column], ["bytes"])
    path = write(tmp_path / "x.parquet", {"image": column}, store_schema=False)
    if craft:
        craft(path)
    assert path.stat().st_size < 2**20
    before = pool.max_memory()
    assert next(open_source(path).items(20, 21)).read() == picture
    assert pool.max_memory() - before < 2**27


def test_pages_that_unpack_to_much_are_read_by_few_rows(tmp_path: Path, pool: pa.MemoryPool) -> None:
    """The mean of all rows says nothing of some pages."""
    images = [bytes(2**22)] * 40 + [b""] * 500
    path = write(tmp_path / "x.parquet", {"image": images}, compression="zstd", use_dictionary=False, write_batch_size=1, data_page_size=1)  # fmt: skip
    del images
    before = pool.max_memory()
    assert sum(len(item.read()) for item in open_source(path).items(0, 540)) == 40 * 2**22
    assert pool.max_memory() - before < 2**27


def test_one_long_label_in_many_rows_is_not_copied(tmp_path: Path, pool: pa.MemoryPool) -> None:
    columns = {"image": [b"x"] * 2000, "label": repeat("x" * 2**24, 2000)}
    write(tmp_path / "a.parquet", columns, store_schema=False)
    del columns
    write(tmp_path / "b.parquet", {"image": [b"y"], "label": ["cat"]})
    before = pool.max_memory()
    source = open_source(f"{tmp_path}/*.parquet")
    reason = "a label of 16,777,216 bytes: at most 4,096 are read"
    failed = [(f"a.parquet#{row}", None, reason) for row in range(2000)]
    assert outcomes(source.items(0, 2001)) == [*failed, ("b.parquet#0", "cat", b"y")]
    assert source.label_values().to_pylist() == [None] * 2000 + ["cat"]
    assert pool.max_memory() - before < 2**28


@pytest.mark.parametrize(
    ("columns", "label", "match"),
    [
        ({"path": "x" * 2**24}, None, "a path of 16,777,216 bytes: at most 4,096 are read"),
        ({"path": "a.png", "label": "x" * 2**24}, "label", "a label of 16,777,216 bytes: at most 4,096 are read"),
    ],
)
def test_one_long_text_in_many_rows_of_a_list_is_not_copied(
    columns: dict, label: str | None, match: str, tmp_path: Path, pool: pa.MemoryPool
) -> None:
    path = write(tmp_path / "x.parquet", {name: repeat(text, 2000) for name, text in columns.items()}, store_schema=False)
    before = pool.max_memory()
    with pytest.raises(UsageError, match=match):
        open_source(path, label_column=label)
    assert pool.max_memory() - before < 2**28


def test_statistics_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    """pyarrow's description of a column chunk ends the process over counts of one level where there are two."""
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 50})
    change_footer(path, b"\x19\x26\x00\x64", b"\x19\x16\x64")
    reason = "damaged Parquet: Definition level histogram size mismatch"
    assert all(outcome.startswith(reason) for _, _, outcome in read_source(open_source(path)))
    with pytest.raises(DecodeError, match=reason):
        open_source(path).reader().read(0)


def test_a_footer_may_not_promise_more_rows_than_the_file_can_hold(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": pa.nulls(2**18 + 1, pa.binary())})
    with pytest.raises(UsageError, match="a Parquet file of 262,145 rows: at most 262,144 are read of one of its size"):
        open_source(path)
    assert open_source(write(path, {"image": pa.nulls(2**18, pa.binary())})).length == 2**18


def test_a_row_group_in_any_order_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.images.tables._MAX_GROUP_BYTES", 1000)
    reader = open_source(write(tmp_path / "x.parquet", {"image": [b"x" * 400] * 10})).reader()
    assert reader.read(2) == b"x" * 400
    with pytest.raises(DecodeError, match="a row group of more than 1,000 bytes: write smaller ones, or read it in order"):
        reader.read(3)


def test_a_row_group_is_not_held_as_a_whole(tmp_path: Path, pool: pa.MemoryPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densefeat.images.parquet_batches._BATCH_BYTES", 2**20)
    pictures = [bytes([i]) * 2**20 for i in range(32)]
    path = write(tmp_path / "x.parquet", {"image": pictures}, compression="none", use_dictionary=False, write_batch_size=1)
    del pictures
    before = pool.max_memory()
    tracemalloc.start()
    sizes = [len(item.read()) for item in open_source(path).items(0, 99)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes == [2**20] * 32
    assert max(peak, pool.max_memory() - before) < 2**23


@pytest.mark.parametrize(
    ("columns", "options", "match"),
    [
        (dict(x=[1.0]), dict(image_column="x"), "column 'x' holds double, no encoded images"),
        (dict(image=[b"x"], y=[1.0]), dict(image_column="y"), "column 'y' holds double, no encoded images"),
        (dict(image=[b"x"]), dict(image_column="picture"), "no column 'picture': it has image"),
        (dict(image=[b"x"]), dict(label_column="class"), "no column 'class': it has image"),
        (
            dict(image=[b"x"], y=[[1]]),
            dict(label_column="y"),
            "column 'y' holds list<element: int64>, no labels: strings or num",
        ),
        (dict(image=[b"x"], y=pa.nulls(1)), dict(label_column="y"), "column 'y' holds null, no labels"),
        (dict(image=pa.array([], pa.binary())), {}, "no rows in it"),
        (dict(image=[b"x"]), dict(base="."), r"base '\.' is not for Parquet files with images"),
        (dict(image=[b"x"]), dict(follow_links=True), "follow_links 'True' is not for Parquet files"),
        (dict(image=[b"x"]), dict(labels="folder"), "labels 'folder' is not for Parquet files"),
    ],
)
def test_wrong_tables(columns: dict, options: dict, match: str, tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", columns)
    with pytest.raises(UsageError, match=match):
        open_source(tmp_path / "x.parquet", **options)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no Parquet" * 10])
def test_files_that_are_no_tables(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(UsageError, match="not a Parquet file, or damaged: "):
        open_source(tmp_path / "x.parquet")
