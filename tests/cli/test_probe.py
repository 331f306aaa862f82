"""``densefeat probe``: from stores and from images."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import densefeat
from densefeat.probing.probe_file import load_probe
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
        "densefeat: report.html will show no images: --images names the place where they are",
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
    report = (tmp_path / "out/report.html").read_text()
    assert "data:image/jpeg" in report  # of the least usual images, at least
    assert "could not be shown" not in report
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


def test_probe_of_a_folder_of_splits(tmp_path: Path, photographs: list) -> None:
    for name, rows in (("train", 20), ("val", 8)):
        make_images(tmp_path / "images" / name, photographs, rows)
    common = [*network_options(tmp_path), "--protocol", "knn", "--images", tmp_path / "images"]
    result = run(*common, "--out", tmp_path / "out")
    assert result.exit_code == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert (results["classes"], results["rows"]) == (["bright", "dark"], {"train": 18, "val": 2, "test": 8})
    assert "the folders train, val are splits: figures are of val" in result.stderr
    assert set(densefeat.open_store(tmp_path / "out/features").labels) == {"bright", "dark"}
    (tmp_path / "images/more/bright").mkdir(parents=True)
    (tmp_path / "images/val/dark/01.png").rename(tmp_path / "images/more/bright/1.png")
    result = run(*common, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert "holds train/ with folders in it, and 'more' beside it: if train is a split, give" in result.stderr


def test_probe_of_tars_and_of_images_that_cannot_be_read(tmp_path: Path, photographs: list) -> None:
    images = make_images(tmp_path / "images", photographs)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for file in sorted(images.rglob("*.png")):
            (tmp_path / "cls").write_text(file.parent.name)
            tar.add(file, file.name)
            tar.add(tmp_path / "cls", f"{file.stem}.cls")
    common = [*network_options(tmp_path), "--protocol", "knn"]
    assert run("--images", tmp_path / "x.tar", "--out", tmp_path / "a", *common).exit_code == 0
    assert json.loads((tmp_path / "a/results.json").read_text())["classes"] == ["bright", "dark"]
    for name in ("lost", "worse"):
        (images / name).mkdir()
        (images / name / "1.png").write_bytes(b"no image")
    result = run("--images", images, "--out", tmp_path / "b", *common)
    assert result.exit_code == 0
    assert "2 classes are left out, for none of their images could be read: lost, worse" in result.stderr
    assert json.loads((tmp_path / "b/results.json").read_text())["classes"] == ["bright", "dark"]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["dark/01.png,a", "bright/00.png,a"], [], "all labels are 'a': labels of at least two classes are needed"),
        (["none.png,a", "other.png,b"], [], "no path in it is a row of"),
        (["dark/01.png,a", "dark/01.png,b"], [], "'dark/01.png' has two values of 'label', 'a' and 'b'"),
        (["dark/01.png,1.5", "bright/00.png,nan"], [], "label 'nan' of 'bright/00.png' is not a finite number"),
        (["dark/01.png,a", "bright/00.png,b"], ["--split-column", "part"], "has no column 'part'"),
        (["dark/01.png,a", "bright/00.png,b"], ["--group-column", "who"], "has no column 'who'"),
        (["dark/01.png,a", "bright/00.png,b"], ["--label-column", "kind"], "no column 'kind', only path, label"),
        (["dark/01.png,a", "bright/00.png,b"], ["--protocol", "sgd"], "1 rows with a label cannot be split: give more"),
    ],
)
def test_labels_are_checked_before_the_images_are_read(
    tmp_path: Path, lines: list[str], options: list[str], message: str
) -> None:
    for name in ("dark/01.png", "bright/00.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        (tmp_path / "images" / name).write_bytes(b"no image")
    (tmp_path / "l.csv").write_text("\n".join(["path,label", *lines]))
    common = ["--images", tmp_path / "images", "--labels", tmp_path / "l.csv", "--out", tmp_path / "out"]
    result = run(*common, *network_options(tmp_path), *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_list_that_gives_an_image_two_labels(tmp_path: Path, photographs: list) -> None:
    make_images(tmp_path / "images", photographs)
    (tmp_path / "l.csv").write_text("path,label\nimages/dark/01.png,a\nimages/dark/01.png,b\nimages/dark/03.png,b\n")
    result = run("--images", tmp_path / "l.csv", "--out", tmp_path / "out", *network_options(tmp_path))
    assert result.exit_code == 2
    assert "l.csv': 'images/dark/01.png' has two values of 'label', 'a' and 'b': several labels of an image go" in result.stderr


def test_a_result_that_is_no_better_than_guessing(tmp_path: Path) -> None:
    features = {"block1": np.random.default_rng(0).standard_normal((204, 3)).astype(np.float32)}
    store = write_probe_store(tmp_path / "s.parquet", ["cat"] * 200 + ["dog"] * 4, features)
    result = run(store, "--out", tmp_path / "out", "--protocol", "knn")
    assert "block1: no better than always answering the most frequent class, which is right for 97.56 %: top-1" in result.stdout
    assert "no better than always" in (tmp_path / "out/report.html").read_text()


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
        (["s", "--epochs", "3"], "--epochs is for --protocol sgd and attentive"),
        (["s", "--protocol", "attentive"], "--protocol attentive learns from augmented images"),
        (["--images", "i", "--protocol", "attentive", "--pool", "max"], "--pool is not for --protocol attentive, which"),
        (["--images", "i", "--protocol", "attentive", "--standardize"], "--standardize is for --protocol logreg"),
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
    assert "holds other files than a probe ('mine.txt')" in finished.stderr
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
