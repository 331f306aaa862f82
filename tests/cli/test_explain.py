"""``densefeat explain``: what it prints, and what it says of wrong use."""

from pathlib import Path

import pytest

import densefeat
from support.commands import run_command
from support.helpers import BUNDLED
from support.runs import write_classes
from support.tiny_net import TINY, write_tiny_weights


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    write_classes(folder / "images", 2)
    (folder / "images/class 0/000.png").write_bytes(b"no image")
    write_tiny_weights(folder)
    return folder


def test_a_network_by_its_name(place: Path, tmp_path: Path) -> None:
    options = ("--weights", "tiny.safetensors", "--images", "images", "--device", "cpu", "--workers", 1)
    command = ("explain", TINY, *options, "--class", 3, "--class", "7", "--out", tmp_path / "o")
    for _ in range(2):
        done = run_command(*command, cwd=place, check=True)
        assert done.stderr.count("not read: class 0/000.png: ") == 1
        first, last = done.stdout.splitlines()
        assert first.startswith("evidence: the maps and the bias add up to the scores, within ")
        assert last == (
            f"wrote {tmp_path}/o/index.html: 5 images, 1 failures ({tmp_path}/o/maps/failures.parquet); maps in {tmp_path}/o/maps"
        )
    assert densefeat.open_store(tmp_path / "o/maps").shapes == {"scores": (10, 1, 1), "evidence": (3, 8, 8)}


def test_labels_of_folders(place: Path, tmp_path: Path) -> None:
    options = ("--images", "images", "--device", "cpu", "--labels", "folder", "--out", tmp_path / "o")
    done = run_command("explain", BUNDLED, *options, cwd=place, check=True)
    assert ", 0 wrong" not in done.stdout  # none of these labels is a class of the network
    assert densefeat.open_store(tmp_path / "o/maps").labels.tolist()[0] == "class 0"


def test_no_image_can_be_read(place: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(b"no image")
    done = run_command("explain", BUNDLED, "--images", tmp_path / "images", "--device", "cpu", "--out", tmp_path / "o")
    failures = tmp_path / "o/maps/failures.parquet"
    assert (done.exit_code, done.stderr) == (1, f"densefeat: none of 1 images could be read: see {failures}\n")
    assert "0 of 0 images" in (tmp_path / "o/index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "n0144353"), "class 'n0144353' is none of the model's 200: n01443537, "),
        (("--images", "nowhere"), "images 'nowhere': no such folder or file"),
        (("--labels", "file.csv"), "'file.csv' is not 'folder'"),
    ],
)
def test_wrong_use(place: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run_command("explain", BUNDLED, "--images", "images", "--out", tmp_path / "o", *arguments, cwd=place)
    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "o").exists()
