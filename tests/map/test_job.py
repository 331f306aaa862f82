"""A store to a page and a table."""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import densefeat.map.job
import densefeat.map.rows
from densefeat.errors import OutputError, UsageError
from densefeat.map.job import MapResult, write_map
from densefeat.probing.job import probe
from densefeat.store.reader import open_store
from support.probes import draw_codes, make_features, write_class_store, write_probe_store
from support.stores import write_store

HOSTILE = ["</script><script>x()</script>", "<!--<script>", "\u2028\n\r\"'&amp;"]


class Parsed(HTMLParser):
    """Scripts by their id, or their number where they have none; and the page's policy."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: dict[str, str] = {}
        self.policy, self.inside = "", None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "script":
            self.inside = attributes.get("id") or str(len(self.scripts))
            self.scripts[self.inside] = ""
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(attributes["content"])

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside is not None:
            self.scripts[self.inside] += data


def read_page_data(path: Path) -> dict:
    return json.loads(Parsed(path).scripts["data"])


def numbers(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def read_texts(fact: dict) -> list[str | None]:
    return [None if code < 0 else fact["texts"][code] for code in numbers(fact["codes"], "<i4").tolist()]


@pytest.fixture
def made(tmp_path: Path) -> MapResult:
    write_store(tmp_path / "store")
    return write_map(open_store(tmp_path / "store"), tmp_path / "map.html", cluster_count=3)


def test_page_and_table_tell_the_same(made: MapResult, tmp_path: Path) -> None:
    store, data, table = open_store(tmp_path / "store"), read_page_data(made.page), pq.read_table(made.table)
    assert table.column_names == ["path", "label", "cluster", "block1_x", "block1_y", "block2_x", "block2_y"]
    assert data["names"] == table["path"].to_pylist() == store.keys.tolist()
    for block in data["blocks"]:
        assert np.array_equal(numbers(block["x"], "<f4"), table[block["name"] + "_x"].to_numpy())
        assert re.fullmatch(r"PCA, \d+ % of the variance", block["projection"])
    label, cluster = data["facts"]
    assert read_texts(label) == table["label"].to_pylist() == store.labels.tolist()
    assert list(map(int, read_texts(cluster))) == table["cluster"].to_pylist()
    assert [colouring["name"] for colouring in data["colourings"]] == ["label", "cluster of block2"]
    assert (made.page, made.table, made.points) == (tmp_path / "map.html", tmp_path / "map.parquet", 30)


def test_only_its_own_scripts_may_run(made: MapResult) -> None:
    parsed = Parsed(made.page)
    hashes = re.findall(r"'sha256-([^']+)'", parsed.policy)
    ours = [text for name, text in parsed.scripts.items() if name.isdigit()]
    assert hashes == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in ours]
    assert len(hashes) == 3
    assert parsed.policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in parsed.policy.partition("script-src")[2]


def test_names_cannot_end_the_data(tmp_path: Path) -> None:
    store = write_probe_store(tmp_path / "s.parquet", HOSTILE, {"block1": np.eye(3, dtype=np.float32)}, keys=HOSTILE)
    made = write_map(open_store(store), tmp_path / "map.html")
    assert read_page_data(made.page)["names"] == HOSTILE
    assert read_texts(read_page_data(made.page)["facts"][0]) == [label.strip() for label in HOSTILE]


def test_again_the_same_bytes(made: MapResult, tmp_path: Path) -> None:
    ids = re.compile(rb'"(p\d+|[0-9a-f-]{36})"')
    again = write_map(open_store(tmp_path / "store"), tmp_path / "again.html", cluster_count=3)
    assert again.table.read_bytes() == made.table.read_bytes()
    first, second = (ids.sub(b"", path.read_bytes()) for path in (made.page, again.page))
    assert first == second


def test_thumbnails_of_the_photographs(photo_folder: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(photo_folder).as_posix() for path in photo_folder.rglob("*.jpg"))
    features = make_features(draw_codes(len(names)))
    store = write_probe_store(tmp_path / "s.parquet", None, features, [*names[:-1], "gone.jpg"])
    made = write_map(open_store(store), tmp_path / "map.html", images=str(photo_folder))
    thumbnails = read_page_data(made.page)["thumbnails"]
    assert (numbers(thumbnails["squares"], "<i4") >= 0).tolist() == [True] * (len(names) - 1) + [False]
    with Image.open(io.BytesIO(base64.b64decode(thumbnails["uris"][0].partition(",")[2]))) as sheet:
        assert sheet.size == (1024, 64)
    assert made.notes[-1] == "Thumbnails of 11 of 12 points: the other images were not found or could not be decoded."


def test_a_page_keeps_its_budget(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(path.relative_to(photo_folder).as_posix() for path in photo_folder.rglob("*.jpg"))
    store = write_probe_store(tmp_path / "s.parquet", None, make_features(draw_codes(len(names))), names)
    whole = write_map(open_store(store), tmp_path / "whole.html", images=str(photo_folder)).page.stat().st_size
    monkeypatch.setattr(densefeat.map.job, "_PAGE_BYTES", whole)  # and the note has its room
    made = write_map(open_store(store), tmp_path / "map.html", images=str(photo_folder))
    assert made.page.stat().st_size < whole
    assert made.notes[-1].startswith("Thumbnails of 0 of 12 points: chosen evenly, more would make the page larger than")


def test_more_rows_than_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(densefeat.map.rows, "_MOST_POINTS", 20)
    write_store(tmp_path / "store")
    made = write_map(open_store(tmp_path / "store"), tmp_path / "map.html")
    assert made.notes[1] == "20 of 30 rows: one at random of each 1.5 in turn."
    keys = pq.read_table(made.table)["path"].to_pylist()
    assert len(keys) == 20
    assert (
        keys == [key for key in open_store(tmp_path / "store").keys if key in set(keys)] == read_page_data(made.page)["names"]
    )


def test_tiles_are_named_by_their_place(tmp_path: Path) -> None:
    places = [(0, 0), (32, 0), (0, 32)]
    store = write_probe_store(tmp_path / "s.parquet", None, {"block1": np.eye(3, dtype=np.float32)}, ["a.png"] * 3, places)
    made = write_map(open_store(store), tmp_path / "map.html")
    assert read_page_data(made.page)["names"] == ["a.png:0,0", "a.png:32,0", "a.png:0,32"]
    table = pq.read_table(made.table)
    assert (table["path"].to_pylist(), table["x"].to_pylist(), table["y"].to_pylist()) == (
        ["a.png"] * 3,
        [0, 32, 0],
        [0, 0, 32],
    )


def test_failures_of_a_probe(tmp_path: Path) -> None:
    store = open_store(write_class_store(tmp_path / "s.parquet"))
    probe(store.path, tmp_path / "probe", protocol="ridge")
    made = write_map(store, tmp_path / "map.html", probe=tmp_path / "probe")
    table, data = pq.read_table(made.table), read_page_data(made.page)
    assert [colouring["name"] for colouring in data["colourings"]] == [
        "right or wrong by the probe", "label", "predicted", "cluster of block3",
    ]  # fmt: skip
    right = np.array(table["label"].to_pylist()) == np.array(table["predicted"].to_pylist())
    assert 0.8 < right.mean() < 1
    codes = numbers(data["colourings"][0]["codes"], "<i4")
    assert np.array_equal(codes == 1, right)
    assert [entry[2] for entry in data["colourings"][0]["entries"]] == [(~right).sum(), right.sum()]
    assert (
        f"Predictions: {tmp_path / 'probe' / 'probe.safetensors'}; it may have been trained on some of these rows."
        in made.notes
    )


def test_labels_from_a_file(tmp_path: Path) -> None:
    store = write_probe_store(tmp_path / "s.parquet", None, {"block1": np.eye(3, dtype=np.float32)})
    (tmp_path / "l.csv").write_text("path,label,age\n0.jpg,a,1.5\n2.jpg,b,2\n")
    made = write_map(open_store(store), tmp_path / "map.html", labels=tmp_path / "l.csv")
    assert pq.read_table(made.table)["label"].to_pylist() == ["a", None, "b"]
    made = write_map(open_store(store), tmp_path / "map.html", labels=tmp_path / "l.csv", label_column="age")
    age = read_page_data(made.page)["colourings"][0]
    assert (age["name"], age["kind"], age["low"], age["high"]) == ("age", "numbers", 1.5, 2)


def test_without_labels(tmp_path: Path) -> None:
    store = write_probe_store(tmp_path / "s.parquet", None, {"block1": np.eye(3, dtype=np.float32)})
    made = write_map(open_store(store), tmp_path / "map.html")
    assert read_page_data(made.page)["labelled"] is False
    assert "label" not in pq.read_table(made.table).column_names
    assert made.notes[-1] == "Thumbnails of 0 of 3 points: the store does not say where its images are: give --images."


def test_wrong_use(tmp_path: Path) -> None:
    store = open_store(write_class_store(tmp_path / "s.parquet"))
    for problem, kind, options in [
        ("method 'lda'", UsageError, {"method": "lda"}),
        ("no column 'age'", UsageError, {"label_column": "age"}),
        ("no features of pool 'max'", UsageError, {"pool": "max"}),
        ("images .*none.: no such folder or file", UsageError, {"images": str(tmp_path / "none")}),
        ("no such file or folder; give the --out of", UsageError, {"probe": tmp_path / "none"}),
    ]:
        with pytest.raises(kind, match=problem):
            write_map(store, tmp_path / "map.html", **options)
    for name in ("map.parquet", "map", "map.htm"):
        with pytest.raises(UsageError, match="must end in .html; its points go beside it"):
            write_map(store, tmp_path / name)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_map(store, tmp_path / "folder.html")
    assert not list(tmp_path.glob("*map*"))


def test_files_of_other_programs_are_not_replaced(tmp_path: Path) -> None:
    """Its own points are; so is nothing of any store."""
    write_store(tmp_path / "store")
    store, out = open_store(tmp_path / "store"), tmp_path / "map.html"
    write_map(store, out)
    write_map(store, out)
    for content in (b"not mine", write_class_store(tmp_path / "s.parquet").read_bytes()):
        (tmp_path / "map.parquet").write_bytes(content)
        with pytest.raises(UsageError, match=r"map.parquet' exists and was not written by this command"):
            write_map(store, out)
        assert (tmp_path / "map.parquet").read_bytes() == content
    for name in ("store/failures.html", "store/data/map.html"):
        with pytest.raises(UsageError, match="is inside the store .*name a file outside of it"):
            write_map(store, tmp_path / name)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    write_store(tmp_path / "store")
    store = open_store(tmp_path / "store")
    store.path = tmp_path / os.fsdecode(b"st\xff")  # pyarrow opens none of such a name everywhere
    assert "st\\udcff" in write_map(store, tmp_path / "map.html").page.read_text("utf-8")


def test_long_labels_are_cut_on_the_page(tmp_path: Path) -> None:
    labels = ["a" * 200, "b" * 201, "b" * 200 + "c"]
    store = write_probe_store(tmp_path / "s.parquet", labels, {"block1": np.eye(3, dtype=np.float32)})
    made = write_map(open_store(store), tmp_path / "map.html")
    cut = "b" * 199 + "…"
    assert read_texts(read_page_data(made.page)["facts"][0]) == ["a" * 200, cut, cut]
    assert [entry[0] for entry in read_page_data(made.page)["colourings"][0]["entries"]] == ["a" * 200, cut, cut]
    assert "Labels of more than 200 characters are cut on the page." in made.notes
    assert pq.read_table(made.table)["label"].to_pylist() == labels


def test_a_page_that_is_too_large_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(densefeat.map.job, "_PAGE_BYTES", 1_000_000)
    write_store(tmp_path / "store")
    made = write_map(open_store(tmp_path / "store"), tmp_path / "map.html")
    assert made.notes[-1] == "The page has 1 MB rather than at most 1: its paths and labels are long."


def test_labels_that_no_row_has(tmp_path: Path) -> None:
    store = write_probe_store(tmp_path / "s.parquet", [None] * 3, {"block1": np.eye(3, dtype=np.float32)})
    data = read_page_data(write_map(open_store(store), tmp_path / "map.html").page)
    assert ([each["name"] for each in data["colourings"]], data["labelled"]) == (["cluster of block1"], False)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [(1, "1 point of made-up: block1, block2 by PCA, in place of t-SNE."),
     (12, "12 points of made-up: block1 by PCA, in place of t-SNE; block2 by t-SNE.")],
)  # fmt: skip
def test_how_points_were_made(tmp_path: Path, rows: int, wanted: str) -> None:
    generator = np.random.default_rng(0)
    features = {f"block{width}": generator.standard_normal((rows, width), np.float32) for width in (1, 2)}
    store = write_probe_store(tmp_path / "s.parquet", None, features)
    assert write_map(open_store(store), tmp_path / "map.html", "tsne").notes[0] == wanted


def test_a_probe_of_other_columns(tmp_path: Path) -> None:
    whole = write_class_store(tmp_path / "s.parquet")
    probe(whole, tmp_path / "probe", protocol="ridge")
    part = write_probe_store(tmp_path / "p.parquet", None, {"block9": np.eye(3, dtype=np.float32)})
    with pytest.raises(UsageError, match=r"p.parquet has no features block.* for this probe: it takes block"):
        write_map(open_store(part), tmp_path / "map.html", probe=tmp_path / "probe")


@pytest.fixture
def atlas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., object]:
    """Runs ``embedding-atlas`` up to its server; returns the server's application."""
    import embedding_atlas.cli

    started: dict[str, object] = {}

    def run(*arguments: object) -> object:
        monkeypatch.setattr("embedding_atlas.cli.uvicorn.run", lambda app, **_: started.update(app=app))
        monkeypatch.setattr("embedding_atlas.cache.user_cache_path", lambda name: tmp_path / name)
        CliRunner().invoke(embedding_atlas.cli.main, [*map(str, arguments)], catch_exceptions=False)
        return started["app"]

    return run


@pytest.mark.filterwarnings("ignore")  # its own
def test_embedding_atlas_opens_the_table(made: MapResult, atlas: Callable[..., object]) -> None:
    """It computes no projection: its server has ours."""
    from fastapi.testclient import TestClient

    app = atlas(made.table, "--x", "block2_x", "--y", "block2_y", "--text", "path")
    with TestClient(app) as client:
        properties = client.get("/data/metadata.json").json()["props"]["data"]
        assert (properties["projection"]["x"], properties["projection"]["y"]) == ("block2_x", "block2_y")
        query = {"type": "json", "sql": "SELECT count(*) n, count(label) m FROM dataset WHERE block2_x IS NOT NULL"}
        assert client.post("/data/query", json=query).json() == [{"n": 30, "m": 24}]
