"""``densefeat probe``: from stores and from images."""

import json
from pathlib import Path

import pytest

import densefeat
from densefeat.probe.probe_file import load_probe
from support.commands import Finished, run_command
from support.probes import draw_codes, make_features, write_class_store, write_probe_store
from support.runs import write_table
from support.tiny_net import TINY, write_tiny_weights


def run(*arguments: object) -> Finished:
    return run_command("probe", *arguments)


def test_probe_of_a_store_twice(tmp_path: Path) -> None:
    store = write_class_store(tmp_path / "s.parquet", 120)
    first = run(store, "--out", tmp_path / "out", "--protocol", "ridge")
    assert first.exit_code == 0
    lines = first.stdout.splitlines()
    assert lines[0].split()[:3] == ["candidate", "features", "setting"]
    assert [line.split()[:2] for line in lines[1:4]] == [["block1", "4"], ["block2", "6"], ["block3", "8"]]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert f"best: {results['best']} (by the validation rows" in first.stdout
    assert results["comparison"]["told"] in first.stdout
    assert "25 a class" in first.stdout
    assert first.stderr.splitlines() == [
        "densefeat: 120 rows with a label, single-label (the labels are names), 3 classes",
        "densefeat: only 10 validation and 24 test rows: figures and choices are rough",
        f"wrote: {tmp_path}/out/report.html",
    ]
    again = run(store, "--out", tmp_path / "out", "--protocol", "ridge")
    assert again.stdout == first.stdout
    assert again.stderr.endswith(f"already there: {tmp_path}/out/report.html\n")


def make_images(folder: Path, photographs: list, rows: int = 20) -> Path:
    """Write two classes of small pieces, dark and bright."""
    for row in range(rows):
        name, shade = ("dark", 0.3) if row % 2 else ("bright", 1.0)
        path = folder / name / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photographs[row % 12].resize((32, 32)).point(lambda value, shade=shade: value * shade).save(path)
    return folder


def network_options(folder: Path) -> list[object]:
    """Return options that name a network of three small blocks, on one thread."""
    return ["--model", TINY, "--weights", write_tiny_weights(folder), "--device", "cpu", "--workers", 1]


def test_probe_of_images(tmp_path: Path, photographs: list) -> None:
    images = make_images(tmp_path / "images", photographs)
    common = ["--images", images, *network_options(tmp_path)]
    result = run(*common, "--out", tmp_path / "out", "--protocol", "knn")
    assert result.exit_code == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["classes"] == ["bright", "dark"]
    assert [candidate["name"] for candidate in results["candidates"]][:3] == ["block1", "block2", "block3"]
    assert results["rows"] == {"train": 14, "val": 2, "test": 4}
    extractor = load_probe(tmp_path / "out").extractor(device="cpu")
    found = load_probe(tmp_path / "out").scores({n: v.numpy() for n, v in extractor([images / "dark/01.png"]).items()})
    assert found.shape == (1, 2)
    assert len(densefeat.open_store(tmp_path / "out/features")) == 20
    (tmp_path / "l.csv").write_text(
        "path,label\n" + "".join(f"{'dark' if i % 2 else 'bright'}/{i:02}.png,{i / 3}\n" for i in range(20))
    )
    regression = ["--protocol", "ridge", "--labels", tmp_path / "l.csv", "--pool", "avg,max"]
    assert run(*common, "--out", tmp_path / "csv", *regression).exit_code == 0
    results = json.loads((tmp_path / "csv/results.json").read_text())
    assert (results["task"], results["candidates"][0]["name"]) == ("regression", "block1_avg")


def test_probe_of_tables_with_test_images(tmp_path: Path) -> None:
    train, test = write_table(tmp_path / "train.parquet", 40, 2), write_table(tmp_path / "test.parquet", 20, 2, seed=1)
    options = [*network_options(tmp_path), "--label-column", "label", "--protocol", "knn"]
    assert run("--images", train, "--test", test, "--out", tmp_path / "out", *options).exit_code == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["rows"] == {"train": 36, "val": 4, "test": 20}
    assert results["classes"] == ["class 0", "class 1"]
    assert run("--images", train, "--test", tmp_path / "out/test-features", "--out", tmp_path / "b", *options).exit_code == 0
    assert json.loads((tmp_path / "b/results.json").read_text())["split_sha256"] == results["split_sha256"]


def test_names_cannot_control_the_terminal(tmp_path: Path) -> None:
    """Labels and paths may hold any characters."""
    names = [f"[red]\x1b[31m{i % 2}" for i in range(60)]
    labels: list[str | None] = [*names]
    labels[3] = None
    store = write_probe_store(tmp_path / "s.parquet", labels, make_features(draw_codes(60)), [f"\x1b]0;{i}" for i in range(60)])
    result = run(store, "--out", tmp_path / "out", "--protocol", "knn")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout + result.stderr
    assert "left out: \\x1b]0;3" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "give a STORE of densefeat extract, or --images"),
        (["s", "--model", "m"], "--model is only for --images"),
        (["s", "--batch-size", "3"], "--batch-size is only for --images"),
        (["s", "--labels", "folder"], "--labels folder is for --images"),
        (["s", "--protocol", "sgd"], "--protocol sgd learns from augmented images"),
        (["--images", "i", "--protocol", "sgd", "--task", "regression"], "--task regression is not for --protocol sgd"),
        (["s", "--epochs", "3"], "--epochs is for --protocol sgd"),
        (["s", "--protocol", "svm"], "'svm' is not one of"),
        (["s", "--seed", "-1"], "-1 is not in the range"),
    ],
)
def test_questions_that_make_no_sense(arguments: list[str], match: str, tmp_path: Path) -> None:
    result = run(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert match in result.stderr
    assert not (tmp_path / "out").exists()


def test_errors_come_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("")
    finished = run("--images", tmp_path, "--out", tmp_path / "out")
    assert finished.exit_code == 2
    assert "holds something other than a probe ('mine.txt')" in finished.stderr
    finished = run(tmp_path / "no", "--out", tmp_path / "new")
    assert finished.exit_code == 2
    assert "no such file or folder" in finished.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("protocol", ["knn", "sgd"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, protocol: str) -> None:
    (tmp_path / "file").write_text("")
    finished = run("--images", tmp_path, "--out", tmp_path / "file/out", "--protocol", protocol, "--device", "cpu")
    assert finished.exit_code == 1
    assert "file/out' cannot be written: Not a directory" in finished.stderr
