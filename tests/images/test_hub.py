"""Data sets that the datasets library saved or streams."""

import json
import re
import sys
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densefeat import DensefeatError, UsageError
from densefeat.images.sources import open_source
from support.streams import make, outcome, outcomes, read_source

datasets = pytest.importorskip("datasets")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": b"image %d" % i, "path": None} for i in range(40)], "label": [i % 2 for i in range(40)]}
    folder = tmp_path / "data"
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(folder))
    return folder


def test_saved_to_disk(saved: Path) -> None:
    source = open_source(saved)
    assert read_source(source) == [(f"data#{i}", ("cat", "dog")[i % 2], b"image %d" % i) for i in range(40)]
    assert open_source(saved, image_column="image", label_column="label").fingerprint() == source.fingerprint()


def test_another_column_is_another_input(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = {name: [{"bytes": b"x", "path": None}] for name in features}
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "data"))
    image, mask = (open_source(tmp_path / "data", image_column=name) for name in features)
    assert read_source(image) == read_source(mask)
    assert image.fingerprint() != mask.fingerprint()


def test_paths_of_a_saved_data_set_stay_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make(tmp_path, "secret.png")
    rows = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": str(tmp_path / "secret.png")}, None]
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    datasets.Dataset.from_dict({"picture": rows}, datasets.Features({"picture": kind})).save_to_disk(str(folder))
    make(folder, "a.png")
    reasons = ["outside of the folder", "neither bytes nor a path in this row"]
    assert [found for _, _, found in outcomes(open_source(folder).items(0, 9))] == [b"a.png", *reasons]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(image_column="picture"), "no column 'picture': it has image, label"),
        (dict(label_column="class"), "no column 'class': it has image, label"),
        (dict(labels="folder"), "labels 'folder' is not for a saved data set"),
    ],
)
def test_wrong_options(options: dict, match: str, saved: Path) -> None:
    with pytest.raises(UsageError, match=match):
        open_source(saved, **options)


def test_more_than_one_split(saved: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    datasets.DatasetDict({"train": datasets.load_from_disk(str(saved)), "test": datasets.load_from_disk(str(saved))}).save_to_disk(str(both))  # fmt: skip
    with pytest.raises(UsageError, match=r"more than one split was saved here: name one, .*both/train, .*both/test$"):
        open_source(both)
    assert open_source(both / "test").keys()[39].as_py() == b"test#39"


def test_a_damaged_saved_data_set(saved: Path) -> None:
    (saved / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="images '.*data': "):
        open_source(saved)


def parquet_folder(folder: Path, rows: int = 70) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = pa.table(
        {"image": [{"bytes": b"image %d" % i, "path": None} for i in range(rows)], "label": [i % 2 for i in range(rows)]}
    )
    (folder / "data").mkdir(parents=True)
    pq.write_table(table.cast(features.arrow_schema), folder / "data/test.parquet")
    return folder


def test_a_stream_of_unknown_length(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "pets")
    source = open_source(f"hf:{folder}:test")
    assert source.length is None
    assert outcomes(source.items(66, 200)) == [
        (f"{folder}:test#{i}", ("cat", "dog")[i % 2], b"image %d" % i) for i in range(66, 70)
    ]
    assert [item.read() for item in source.items(0, 3)] == [b"image 0", b"image 1", b"image 2"]
    assert [item.key for item in source.items(3, 5)] == [f"{folder}:test#3", f"{folder}:test#4"]
    with pytest.raises(UsageError, match="the number of its rows is not known before the end of the stream"):
        source.keys()


def test_a_stream_whose_length_is_written_down(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "pets", 5)
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  splits:\n  - name: test\n    num_bytes: 100\n    num_examples: 5\n---\n"
    )
    source = open_source(f"hf:{folder}:test")
    assert [data for _, _, data in read_source(source)] == [b"image %d" % i for i in range(5)]
    assert source.length == 5


def test_a_stream_of_files_and_archives(tmp_path: Path) -> None:
    folder = make(tmp_path / "pets", "test/cat/1.png", "test/dog/2.png")
    make(tmp_path, "secret.png")
    (folder / "test/dog/3.png").symlink_to(tmp_path / "secret.png")
    found = outcomes(open_source(f"hf:{folder}:test").items(0, 9))
    assert [(label, data) for _, label, data in found] == [
        ("cat", b"test/cat/1.png"),
        ("dog", b"test/dog/2.png"),
        ("dog", "a symbolic link out of the folder"),
    ]
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    with zipfile.ZipFile(zipped / "test.zip", "w") as archive:
        archive.writestr("1.png", b"one")
        archive.writestr("2.png", b"two")
    assert [data for _, _, data in outcomes(open_source(f"hf:{zipped}:test").items(0, 9))] == [b"one", b"two"]


def test_paths_in_a_stream_stay_in_it(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "pets", 1)
    secret = make(tmp_path, "secret.png") / "secret.png"
    paths = [str(secret), "../secret.png", f"{folder}/../secret.png", f"file://{secret}", f"zip://a.png::{secret}"]
    table = pa.table({"image": [{"bytes": None, "path": path} for path in paths]})
    features = datasets.Features({"image": datasets.Image()})
    pq.write_table(table.cast(pa.schema([("image", pa.struct({"bytes": pa.binary(), "path": pa.string()}))], features.arrow_schema.metadata)), folder / "data/test.parquet")  # fmt: skip
    items = list(open_source(f"hf:{folder}:test").items(0, 9))
    assert [outcome(item) for item in items] == ["outside of the data set"] * 5


def test_a_stream_that_breaks_off(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "pets")
    source = open_source(f"hf:{folder}:test")
    (folder / "data/test.parquet").unlink()
    with pytest.raises(DensefeatError, match=r"pets:test': the stream broke off at row 2"):
        list(source.items(2, 9))


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("hf:cifar10", "write hf:NAME:SPLIT"),
        ("hf::test", "write hf:NAME:SPLIT"),
        ("hf:cifar10:", "write hf:NAME:SPLIT"),
        ("hf:{folder}:dev", "Bad split: dev"),
        ("hf:{folder}/empty:test", "hf:.*empty:test': "),
    ],
)
def test_wrong_addresses(address: str, match: str, tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "pets", 1)
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=match) as caught:
        open_source(address.format(folder=folder))
    assert "\n" not in str(caught.value)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UsageError, match="images 'hf:nobody/nothing:test': ") as caught:
        open_source("hf:nobody/nothing:test")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 12


def test_without_the_package(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the package datasets: pip install datasets"):
        open_source(saved)


OUTSIDE = (
    "/etc/passwd",
    "../other/x.parquet",
    "data/../../x",
    "http://127.0.0.1:9/x.parquet",
    "hf://datasets/a/b/x",
    "zip::x.zip",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_state_of_a_saved_data_set_names_no_file_outside(saved: Path, name: str) -> None:
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"_data_files": [*state["_data_files"], {"filename": name}]}))
    with pytest.raises(UsageError, match=f"data': it names the file '{re.escape(name)}', which is not in its folder"):
        open_source(saved)


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_the_card_of_a_folder_names_no_file_outside(tmp_path: Path, name: str, file: str) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "x.parquet")
    for config in (
        {"data_files": name},
        {"data_files": [name]},
        {"data_files": {"train": ["x.parquet", name]}},
        {"data_files": [{"split": "train", "path": "x.parquet"}, {"split": "test", "path": [name]}]},
        {"data_dir": name},
    ):
        text = json.dumps({"configs": [{"config_name": "default"} | config]})
        (tmp_path / file).write_text(f"---\n{text}\n---\n# Data" if file == "README.md" else text)
        with pytest.raises(UsageError, match=f"it names the file '{re.escape(name)}', which is not in its folder"):
            open_source(f"hf:{tmp_path}:train")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("---\na: &a [1]\nconfigs: *a\n---\n", "aliases are not read"),
        ("---\nconfigs: [{\n---\n", "while parsing a flow node"),
        ("---\nconfigs: 3\n---\n", "int"),
        ("x" * (2**24 + 1), "README.md has 16,777,217 bytes: at most 16,777,216 are read"),
    ],
)
def test_damaged_cards(tmp_path: Path, text: str, match: str) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "x.parquet")
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UsageError, match=match):
        open_source(f"hf:{tmp_path}:train")


def test_links_of_a_folder_stay_in_it(tmp_path: Path, saved: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    pq.write_table(pa.table({"image": [b"x"]}), folder / "train.parquet")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train*\n---\n# Data")
    (folder / "train-again.parquet").symlink_to("train.parquet")
    assert [found for _, _, found in read_source(open_source(f"hf:{folder}:train"))] == [b"x", b"x"]
    pq.write_table(pa.table({"image": [b"secret"]}), tmp_path / "secret.parquet")
    (folder / "train-more.parquet").symlink_to(tmp_path / "secret.parquet")
    with pytest.raises(UsageError, match="'train-more.parquet' is a symbolic link out of its folder"):
        open_source(f"hf:{folder}:train")
    (saved / "more.arrow").symlink_to(tmp_path / "secret.parquet")
    with pytest.raises(UsageError, match="'more.arrow' is a symbolic link out of its folder"):
        open_source(saved)
