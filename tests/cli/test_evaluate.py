"""``densefeat evaluate``: its table, JSON, and what it says of wrong use."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from densefeat.evaluation.accuracy import evaluate as evaluate_network
from support.commands import Finished, run_command
from support.helpers import BUNDLED
from support.tiny_net import TINY, write_tiny_weights


@pytest.fixture
def run(folder: Path) -> Callable[..., Finished]:
    """Run the command in an empty folder."""
    return partial(run_command, "evaluate")


@pytest.fixture
def classes(trained: nn.Module) -> list[str]:
    with safe_open(trained.pretrained_cfg["file"], "pt") as opened:
        return json.loads(opened.metadata()["classes"])


@pytest.fixture
def data(tmp_path: Path, photographs: list[Image.Image], classes: list[str]) -> Path:
    """The photographs at 32×32, four in each of three classes."""
    for i, photograph in enumerate(photographs):
        path = tmp_path / "data" / classes[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.resize((32, 32)).save(path)
    return tmp_path / "data"


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table(run, data: Path) -> None:
    wanted = evaluate_network(BUNDLED, str(data)).to_json()
    code, out, err = run(BUNDLED, "--data", "data", "--device", "cpu")
    assert (code, err) == (0, "".join(f"densefeat: {note}\n" for note in wanted["notes"]))
    assert lines(out) == [
        [BUNDLED, "images", "top-1", "%", "top-5", "%"],
        ["all", "12", f"{wanted['top1']:.2f}", f"{wanted['top5']:.2f}"],
    ]


def test_per_class_worst_first(run, data: Path, classes: list[str]) -> None:
    wanted = evaluate_network(BUNDLED, str(data)).to_json()
    code, out, _ = run(BUNDLED, "--data", "data", "--device", "cpu", "--per-class")
    head, total, *rows = lines(out)
    assert (code, head, total[:2]) == (0, ["class", "images", "top-1", "%", "top-5", "%"], ["all", "12"])
    assert sorted(row[0] for row in rows) == classes[:3]
    firsts = [float(row[2]) for row in rows]
    assert firsts == sorted(row["top1"] for row in wanted["per_class"] if row["images"])
    assert {row[1] for row in rows} == {"4"}


def test_json(run, data: Path, tmp_path: Path) -> None:
    code, out, _ = run(BUNDLED, "--data", "data", "--device", "cpu", "--crops", "10", "--json", "e.json")
    assert code == 0
    assert "all" in out
    found = json.loads((tmp_path / "e.json").read_text())
    assert found == {"kind": "densefeat evaluation"} | evaluate_network(BUNDLED, str(data), crops=10).to_json()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "e.json"]


def test_what_was_left_out(run, data: Path, classes: list[str]) -> None:
    (data / classes[0] / "red\x1b[31m.png").write_bytes(b"")
    Image.new("RGB", (32, 32)).save(data / "beside.png")
    code, out, err = run(BUNDLED, "--data", "data", "--device", "cpu")
    assert code == 0
    assert lines(out)[1][:2] == ["all", "12"]
    first = rf"{classes[0]}/red\x1b[31m.png: the file is empty"
    assert err.splitlines()[-1] == f"left out: 1 without a label, 1 unreadable, the first: {first}"


def test_names_of_classes_are_no_markup(run, tmp_path: Path, photographs: list[Image.Image], trained: nn.Module) -> None:
    """They are no commands for the terminal either."""
    names = [f"class {i}" for i in range(200)]
    names[:2] = ["[red]fox[/red]", "[/]\x1b[2J"]
    tensors = {name: value.contiguous() for name, value in trained.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors", {"classes": json.dumps(names)})
    photographs[0].resize((32, 32)).save(tmp_path / "a.png")
    table = pa.table({"image": [(tmp_path / "a.png").read_bytes()] * 2, "label": names[:2]})
    pq.write_table(table, tmp_path / "x.parquet")
    code, out, err = run(BUNDLED, "--weights", "w.safetensors", "--data", "x.parquet", "--device", "cpu", "--per-class")
    assert code == 0
    assert len(err.splitlines()) == 1  # that these are guesses
    assert sorted(line[0] for line in lines(out)[2:]) == sorted(["[red]fox[/red]", r"[/]\x1b[2J"])


def test_options_of_the_order_of_classes(run, tmp_path: Path, photographs: list[Image.Image]) -> None:
    weights = write_tiny_weights(tmp_path)  # which do not name their classes
    names = [f"c{number}" for number in range(1, 11)]
    for name, photograph in zip(names, photographs, strict=False):
        (tmp_path / "data" / name).mkdir(parents=True)
        photograph.resize((32, 32)).save(tmp_path / "data" / name / "0.png")
    common = [TINY, "--weights", weights, "--data", "data", "--device", "cpu", "--json", "e.json"]
    (tmp_path / "classes.txt").write_text("\n".join(names[::-1]))
    for options, order in (
        ([], ["c1", "c10", *names[1:9]]),
        (["--class-order", "text"], ["c1", "c10", *names[1:9]]),
        (["--class-order", "natural"], names),
        (["--classes", "classes.txt"], names[::-1]),
    ):
        code, _, err = run(*common, *options)
        assert code == 0
        assert [row["class"] for row in json.loads((tmp_path / "e.json").read_text())["per_class"]] == order
        assert ("the weights do not name their classes, which are taken in text order (c1, c10, c2, …)" in err) == (not options)


def test_a_list_that_lies_elsewhere_and_a_folder_of_splits(run, data: Path, tmp_path: Path, classes: list[str]) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list.csv").write_text(f"path,label\n{classes[0]}/0.png,{classes[0]}\n")
    code, out, _ = run(BUNDLED, "--data", "lists/list.csv", "--base", "data", "--device", "cpu")
    assert (code, lines(out)[1][:2]) == (0, ["all", "1"])
    (tmp_path / "root").mkdir()
    data.rename(tmp_path / "root/Val")
    code, out, err = run(BUNDLED, "--data", "root", "--device", "cpu")
    assert (code, lines(out)[1][:2]) == (0, ["all", "12"])
    assert "densefeat: 'root' holds splits: the figures are of 'root/Val'" in err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument 'MODEL'."),
        ([BUNDLED], 2, "Missing option '--data'."),
        ([BUNDLED, "--data", "nowhere"], 2, "images 'nowhere': no such folder or file"),
        (["densefeat_nothing", "--data", "data"], 2, "unknown model 'densefeat_nothing': "),
        ([BUNDLED, "--data", "data", "--crops", "5"], 2, "Invalid value for '--crops': '5' is not one of '1', '10'."),
        ([BUNDLED, "--data", "data", "--image-size", "16"], 2, "Invalid value for '--image-size': 16 is not in the range x>=32."),
        ([BUNDLED, "--data", "data", "--crop-pct", "2"], 2, "crop_pct 2.0: give a share, above 0 and at most 1"),
        ([BUNDLED, "--data", "data", "--crop-pct", "0"], 2, "crop_pct 0.0: give a share, above 0 and at most 1"),
        ([BUNDLED, "--data", "data", "--device", "toaster"], 2, "device 'toaster': no such kind of device"),
        ([BUNDLED, "--data", "data", "--device", "cuda:99"], 2, "device 'cuda:99' cannot be used; this machine has cpu"),
        ([BUNDLED, "--data", "data", "--label-column", "x"], 2, "images 'data': label_column 'x' is not for a folder of images"),
        ([BUNDLED, "--data", "data", "--weights", "none.pth"], 1, "weights none.pth: no such file"),
        ([BUNDLED, "--data", "data", "--class-order", "text"], 2, "class_order 'text': the classes are named by weights"),
        ([BUNDLED, "--data", "data", "--class-order", "size"], 2, "Invalid value for '--class-order'"),
        ([BUNDLED, "--data", "data", "--classes", "none.txt"], 2, "classes 'none.txt': No such file"),
        ([BUNDLED, "--data", "data", "--base", "data"], 2, "images 'data': base 'data' is not for a folder of images"),
        (["data", "--data", "data"], 2, "model 'data': this folder holds no config.json"),
        ([BUNDLED, "--data", "data", "--json", "no/e.json"], 1, "output 'no/e.json' cannot be written: No such file"),
        ([BUNDLED, "--data", "data", "--json", "data"], 1, "output 'data' is a folder: give a file name"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(run, arguments: list[str], code: int, message: str, data: Path, tmp_path: Path) -> None:
    ended, out, err = run(*arguments)
    assert (ended, out) == (code, "")
    (line,) = err.splitlines()
    assert line.startswith(f"densefeat: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
