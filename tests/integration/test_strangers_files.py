"""No command replaces, changes or deletes what it did not write, whatever it is called: it refuses, or leaves it alone."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from densefeat.anomaly import fit_detector
from densefeat.extraction import extract
from densefeat.probing import probe
from densefeat.segmentation import probe_masks
from support.commands import run_command
from support.probes import write_class_store
from support.runs import FAST, tiny_overrides
from support.tiny_net import TINY, write_tiny_weights

Tree = dict[str, tuple[str, bytes | str, int]]

KINDS = ("file", "folder", "link to a file", "link to a folder", "link to nothing")
PROBE_FILES = (
    "results.json",
    "predictions.csv",
    "probe.safetensors",
    "report.html",
    "blocks.png",
    "confusion.svg",
    "reliability.png",
)
RUN_FILES = ("recipe.yaml", "metrics.jsonl", "results.json", "config.json", "model.safetensors", "curves.png", "checkpoints")
INT8 = "--precision int8 --min-cosine 0"
STORE_FILES = ("manifest.json", "failures.parquet", "stamps.parquet", "data", "work", ".lock")

# for each command the names that it writes; words in braces stand for what the module's fixture has made
COMMANDS = {
    "extract --images {photos} --out n.parquet {net}": ["n.parquet", "n.failures.jsonl"],
    "extract --images {photos} --out n.parquet --overwrite {net}": ["n.parquet", "n.failures.jsonl"],
    "extract --images {photos} --out e {net}": [f"e/{name}" for name in STORE_FILES],
    "extract --images {photos} --out e --overwrite {net}": [f"e/{name}" for name in STORE_FILES],
    f"extract --images {{photos}} --out e {INT8} {{net}}": [f"e/{name}" for name in (*STORE_FILES, "int8.safetensors")],
    "probe {store} --out p --protocol knn": [f"p/{name}" for name in PROBE_FILES],
    "probe {store} --out p --protocol layers": [f"p/{name}" for name in (*PROBE_FILES, "layers.png", "layers.svg")],
    "probe --images {photos} --out p {net}": [f"p/{name}" for name in (*PROBE_FILES, "features")],
    "probe --images {photos} --out p --protocol sgd {net}": [f"p/{name}" for name in (*PROBE_FILES, "features")],
    "probe --images {photos} --out p --protocol attentive {net}": [f"p/{name}" for name in (*PROBE_FILES, "features")],
    "predict --model {probe} --images {photos} --out o": ["o/predictions.csv", "o/scores"],
    "predict --model {probe} --images {photos} --out o --overwrite": ["o/predictions.csv", "o/scores"],
    "explain {model} --images {photos} --out x --device cpu": [
        f"x/{name}" for name in ("explained.csv", "explained.json", "index.html", "maps", "pictures")
    ],
    "anomaly fit --images {photos} --out a --false-alarms 10% {net}": ["a/detector.safetensors", "a/features"],
    "anomaly score --model {detector} --images {photos} --out o": [
        f"o/{name}" for name in ("anomalies.csv", "index.html", "results.json", "heat", "scores")
    ],
    "segment probe --images {photos} --masks {masks} --out s --protocol knn {net}": [
        f"s/{name}" for name in ("results.json", "index.html", "segmenter.safetensors", "features")
    ],
    "segment predict --model {segmenter} --images {photos} --out o": [
        "o/shares.csv",
        "o/logits",
        "o/masks",
        "o/overlays",
        "o/masks/ant/0.png",
        "o/overlays/bee/1.png",
    ],
    "map {store} --out m.html": ["m.html", "m.parquet"],
    "search {store} --key 0.jpg --html s.html": ["s.html"],
    "look {image} --picture l.png": ["l.png"],
    "weights convert {weights} --model {tiny} --out w.safetensors": ["w.safetensors"],
    "report reuse {model} --out r.png": ["r.png", "r.csv"],
    "report reuse {model} --out r.svg --what prune --images {photos}": ["r.svg", "r.csv", "r.jsonl"],
    "report model {model} --out m.html": ["m.html"],
    "report model {model} --out m.md": ["m.md"],
    "evaluate {model} --data {photos} --json e.json": ["e.json"],
    "bench --out b.json": ["b.json"],
    "recipes copy cifar10_fast c.yaml": ["c.yaml"],
    "convert {store} --to csv --out c.csv": ["c.csv", "c.provenance.json"],
    "convert {store} --to npz --out c.npz": ["c.npz"],
    "convert {store} --to npy --out c": ["c"],
    "convert {store} --to safetensors --out c.safetensors": ["c.safetensors"],
    "convert {store} --to datasets --out c": ["c"],
    "export {model} --to onnx --out x.onnx": ["x.onnx"],
    "export {model} --to openvino --out x.xml": ["x.xml", "x.bin"],
    "export {model} --to torch-export --out x.pt2": ["x.pt2"],
    "export {model} --to safetensors --out x.safetensors": ["x.safetensors"],
    "export {model} --to hub-folder --out x": ["x"],
    "export {probe} --to onnx --out x.onnx": ["x.onnx"],
    "train {recipe} --out run": [f"run/{name}" for name in (*RUN_FILES, ".lock")],
    "finetune --data {photos} --out run --model {model}": [f"run/{name}" for name in (*RUN_FILES, ".lock")],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Images, a store, a probe and a recipe, by the words that stand for them in commands."""
    folder = tmp_path_factory.mktemp("made")
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"photos/{name}/{i}.png")
            mask = folder / "masks" / name / f"{i}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 2, (32, 32), np.uint8)).save(mask)
    store = write_class_store(folder / "store.parquet", 60)
    probe(store, folder / "probe", protocol="knn")
    network = {"model": TINY, "weights": write_tiny_weights(folder), "device": "cpu"}
    fit_detector(folder / "photos", folder / "detector", false_alarms=0.1, **network)
    probe_masks(folder / "photos", folder / "masks", folder / "segmenter", protocol="knn", **network)
    return {
        "{photos}": [str(folder / "photos")],
        "{net}": ["--model", TINY, "--weights", str(write_tiny_weights(folder)), "--device", "cpu"],
        "{image}": [str(folder / "photos/ant/0.png")],
        "{weights}": [str(write_tiny_weights(folder))],
        "{tiny}": [TINY],
        "{masks}": [str(folder / "masks")],
        "{segmenter}": [str(folder / "segmenter")],
        "{store}": [str(store)],
        "{probe}": [str(folder / "probe")],
        "{detector}": [str(folder / "detector")],
        "{model}": ["densefeat_densenet_bc100_k12"],
        "{recipe}": [str(FAST), *tiny_overrides(folder)],
    }


@pytest.fixture(scope="module")
def finished(made: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished store ``e``."""
    folder = tmp_path_factory.mktemp("finished")
    photos, (_, model, _, weights, *_) = made["{photos}"][0], made["{net}"]
    extract(photos, folder / "e", model, weights, device="cpu", part_rows=12)
    return folder


def fill_in(command: str, made: dict[str, list[str]]) -> list[str]:
    return [word for part in command.split() for word in made.get(part, [part])]


def put_stranger(path: Path, kind: str, outside: Path) -> None:
    """Put something of the user's at ``path``; what links lead to is in the folder ``outside``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("years of work")
    (outside / "folder/part-00000.parquet").write_text("years of work")
    if kind == "file":
        path.write_text("years of work")
    elif kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    else:
        path.symlink_to({"link to a file": outside / "file", "link to a folder": outside / "folder"}.get(kind, outside / "no"))


def read_tree(folder: Path) -> Tree:
    """Read all there is in a folder: what each entry is, its content or what it links to, and its time."""
    tree: Tree = {}
    for path in sorted(folder.rglob("*")):
        status, name = path.lstat(), path.relative_to(folder).as_posix()
        if path.is_symlink():
            tree[name] = "link", os.readlink(path), status.st_mtime_ns
        elif path.is_dir():
            tree[name] = "folder", "", 0  # its time changes with what others put into it
        else:
            tree[name] = "file", path.read_bytes(), status.st_mtime_ns
    return tree


def assert_untouched(before: Tree, folder: Path) -> None:
    after = read_tree(folder)
    changed = [name for name, entry in before.items() if after.get(name) != entry]
    assert not changed, changed


@pytest.mark.parametrize("command", COMMANDS)
def test_a_strangers_file_is_refused(command: str, made: dict[str, list[str]], tmp_path: Path) -> None:
    for number, (name, kind) in enumerate((name, kind) for name in COMMANDS[command] for kind in KINDS):
        folder = tmp_path / str(number)
        put_stranger(folder / "in" / name, kind, folder / "outside")
        before = read_tree(folder)
        done = run_command(*fill_in(command, made), cwd=folder / "in")
        assert_untouched(before, folder)
        assert done.exit_code in (1, 2), (name, kind, done)
        assert Path(name).name in done.stderr, (name, kind, done.stderr)
        assert done.stderr.count("\n") <= 3, done.stderr  # click's errors have two lines of usage before them
        shutil.rmtree(folder)


def put_file(name: str) -> Callable[[Path, Path], None]:
    def put(store: Path, outside: Path) -> None:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("years of work")

    return put


def put_table(name: str) -> Callable[[Path, Path], None]:
    def put(store: Path, outside: Path) -> None:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"years": ["of", "work"]}), store / name)

    return put


def link(name: str) -> Callable[[Path, Path], None]:
    """Make a part of the store a link to what is now outside of it."""

    def put(store: Path, outside: Path) -> None:
        outside.mkdir()
        if (store / name).exists():
            shutil.move(store / name, outside / "target")
        else:
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            (outside / "target").mkdir()
            (outside / "target/part-00000.parquet").write_text("years of work")
            (outside / "target/part-00000.json").write_text("years of work")
        (store / name).symlink_to(outside / "target")

    return put


BESIDE = {  # names that are none of densefeat's: every command leaves them alone and does its work
    "a folder work/": put_file("work/thesis.tex"),
    "folders in work/": put_file("work/records/thesis.tex"),
    "an unfinished download": put_file(".thesis.pdf.partial"),
    "a temporary file of another program": put_file(".manifest.json.a1.partial"),
    "a table in data/": put_table("data/thesis.parquet"),
    "a closing manifest": put_file("work/closing/thesis/manifest.json"),
}
IN_THE_WAY = {  # names that are: a job that writes there refuses
    "a table named as a part": put_table("data/part-00099.parquet"),
    "a table named as an unfinished part": put_table("work/part-00000.parquet"),
    "a file named as a record": put_file("work/records/part-00000.json"),
    "a file named as a closing manifest": put_file("work/closing/manifest.json"),
    "a file named work": put_file("work"),
    "a link work": link("work"),
    "a link work/records": link("work/records"),
    "a link work/closing": link("work/closing"),
    "a link data": link("data"),
    "a link to a part": link("data/part-00000.parquet"),
    "a link to the manifest": link("manifest.json"),
    "a link to the failures": link("failures.parquet"),
    "a link to the stamps": link("stamps.parquet"),
}


def copy_with_stranger(finished: Path, folder: Path, put: Callable[[Path, Path], None]) -> tuple[Path, Tree]:
    """Copy the finished store and put a stranger's things into it; return the store, and the tree of what is not the store's."""
    shutil.copytree(finished / "e", folder / "e")
    own = read_tree(folder)
    put(folder / "e", folder / "outside")
    return folder / "e", {name: entry for name, entry in read_tree(folder).items() if own.get(name) != entry}


@pytest.mark.parametrize("stranger", BESIDE)
def test_what_is_beside_a_stores_own_files_stays(
    stranger: str, made: dict[str, list[str]], finished: Path, tmp_path: Path
) -> None:
    store, before = copy_with_stranger(finished, tmp_path, BESIDE[stranger])
    command = fill_in("extract --images {photos} {net} --part-rows 12", made)
    again = run_command(*command, "--out", store, check=True)
    assert "nothing was left to do" in again.stdout
    assert_untouched(before, tmp_path)
    run_command(*command, "--out", store, "--overwrite", check=True)
    assert_untouched(before, tmp_path)
    assert "24 rows, 0 failures; nothing" in run_command(*command, "--out", store, check=True).stdout


@pytest.mark.parametrize("stranger", IN_THE_WAY)
def test_what_is_in_the_way_of_a_store_is_refused(
    stranger: str, made: dict[str, list[str]], finished: Path, tmp_path: Path
) -> None:
    store, before = copy_with_stranger(finished, tmp_path, IN_THE_WAY[stranger])
    name = next(Path(name).name for name, (kind, *_) in before.items() if name.startswith("e/") and kind != "folder")
    command = fill_in("extract --images {photos} {net} --part-rows 12", made)
    whole = read_tree(tmp_path)
    for more in (["--overwrite"], []):
        done = run_command(*command, "--out", store, *more)
        assert_untouched(whole, tmp_path)
        if more or done.exit_code:
            assert done.exit_code in (1, 2), done
            assert name in done.stderr


@pytest.mark.parametrize(
    "start", ["search", "extract --images {photos} --out n", pytest.param(("map", "report model"), marks=pytest.mark.slow)]
)
def test_own_files_are_replaced(start: str | tuple[str, ...], made: dict[str, list[str]], tmp_path: Path) -> None:
    """By the same command, and a page by that of another command."""
    for command in [command for command in COMMANDS if command.startswith(start)] * 2:
        run_command(*fill_in(command, made), cwd=tmp_path, check=True)


def test_a_table_of_predictions_is_the_users_once_it_was_changed(
    made: dict[str, list[str]], finished: Path, tmp_path: Path
) -> None:
    photos, weights = made["{photos}"][0], made["{net}"][3]
    probe(finished / "e", tmp_path / "p", protocol="knn", labels=write_labels(tmp_path))
    command = ["predict", "--model", tmp_path / "p", "--images", photos, "--weights", weights, "--device", "cpu"]
    command += ["--out", tmp_path / "o"]
    table = tmp_path / "o/predictions.csv"
    for _ in range(2):
        run_command(*command, check=True)
    table.write_text(table.read_text().replace(",ant,", ",my ant,"))
    before = read_tree(tmp_path)
    done = run_command(*command, "--overwrite")
    assert (done.exit_code, "predictions.csv' exists and was not written" in done.stderr) == (2, True)
    assert_untouched(before, tmp_path)


def write_labels(folder: Path) -> Path:
    rows = [f"{name}/{i}.png,{name}\n" for name in ("ant", "bee") for i in range(12)]
    (folder / "labels.csv").write_text("".join(["path,label\n", *rows]))
    return folder / "labels.csv"
