"""``densefeat segment``: what it prints, and its exit codes."""

import shutil
from pathlib import Path

import pytest

from support.commands import run_command
from support.segments import write_textures
from support.tiny_net import TINY, write_tiny_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segment")
    write_textures(folder, 6)
    write_tiny_weights(folder)
    (folder / "names.txt").write_text("noise\nstripes\n")
    return folder


PROBE = f"segment probe --images images --masks masks --out out --classes names.txt --model {TINY} --weights tiny.safetensors"


def test_probe_and_predict(folder: Path) -> None:
    (folder / "masks/0.png").rename(folder / "masks/10.png")
    command = [*PROBE.split(), "--image-size", "48", "--ignore", "255", "--device", "cpu", "--protocol", "knn"]
    done = run_command(*command, cwd=folder, check=True)
    (folder / "masks/10.png").rename(folder / "masks/0.png")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["candidate", "features"]
    assert any(line.startswith("stripes") for line in lines)
    assert "(by the validation images); images: 3 train, 1 val, 1 test" in done.stdout
    assert "intervals" not in done.stdout  # of a single test image there is none
    assert "1 of 6 images have no mask" in done.stderr
    assert "only 1 validation and 1 test images" in done.stderr
    assert done.stderr.endswith("wrote: out/index.html\n")
    done = run_command(
        "segment", "predict", "--model", "out", "--images", "images", "--out", "o", "--device", "cpu", cwd=folder
    )
    assert done.exit_code == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"class", "noise", "stripes", "wrote"}
    assert len(list((folder / "o/masks").glob("*.png"))) == 6


def test_lists_with_a_base(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"images/{number}.png\n" for number in range(6)))
    (tmp_path / "masks").mkdir()
    shutil.copytree(folder / "masks", tmp_path / "masks/images")
    command = PROBE.replace("--images images --masks masks --out out", f"--images {tmp_path}/list.txt --masks {tmp_path}/masks")
    command += f" --out {tmp_path}/out --base . --image-size 48 --ignore 255 --device cpu --protocol knn"
    run_command(*command.split(), cwd=folder, check=True)
    assert (tmp_path / "out/index.html").read_text().count('<img src="data:image/jpeg') == 2
    assert "already there" in run_command(*command.split(), cwd=folder, check=True).stderr
    mixed = command.replace(f"{tmp_path}/out", f"{tmp_path}/mixed") + " --test-images images --test-masks masks"
    assert ", 6 test" in run_command(*mixed.split(), cwd=folder, check=True).stdout  # the base is the list's, not the folder's
    assert (tmp_path / "mixed/index.html").read_text().count('<img src="data:image/jpeg') == 12
    command = f"segment predict --model {tmp_path}/out --images {tmp_path}/list.txt --base . --out {tmp_path}/o --device cpu"
    run_command(*command.split(), cwd=folder, check=True)
    assert (
        len(list((tmp_path / "o/masks/images").glob("*.png"))) == len(list((tmp_path / "o/overlays/images").glob("*.png"))) == 6
    )


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        (f"{PROBE} --image-size 48", 2, "number 255"),
        (f"{PROBE} --ignore 255 --test-images images", 2, "give both"),
        (f"{PROBE} --ignore 70000", 2, "0 to 65535"),
        (PROBE.replace("--masks masks", "--masks nowhere"), 2, "nowhere"),
        (PROBE.replace("--images images", "--images nowhere"), 2, "nowhere"),
        (f"{PROBE} --ignore 255 --base images", 2, "base 'images' is not for a folder"),
        (f"{PROBE} --stride 0", 2, "--stride"),
        (f"{PROBE} --batch-size 0", 2, "--batch-size"),
        ("segment predict --model images --images images --out p --batch-size 0", 2, "--batch-size"),
        ("segment predict --model images --images images --out p", 1, "no such file; give the folder"),
    ],
)
def test_errors_are_one_line(folder: Path, tmp_path: Path, command: str, code: int, text: str) -> None:
    done = run_command(*command.replace("--out out", f"--out {tmp_path}/new").split(), cwd=folder)
    assert (done.exit_code, text in done.stderr) == (code, True), done.stderr
    assert not (tmp_path / "new").exists()
