"""``densefeat look``: what it says of a file, and the picture of what a network reads."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from support.commands import run_command


def write(folder: Path) -> Path:
    file = folder / "a.tif"
    tifffile.imwrite(file, (np.arange(6400, dtype=np.uint16) % 4096).reshape(80, 80))
    return file


def test_what_a_file_holds_and_what_is_missing(tmp_path: Path) -> None:
    code, out, err = run_command("look", write(tmp_path))
    assert code == 1
    text = " ".join(out.split())
    for fact in ("format TIFF", "80 × 80 pixels", "uint16, grey, 16 bits used", "declared range nothing", "1 0 32 4032 4095"):
        assert fact in text
    assert "densefeat: 16-bit samples of at most 4,095, nearly black" in err
    assert "--range 0:4095" in err


def test_a_picture_of_what_a_network_reads(tmp_path: Path) -> None:
    picture = tmp_path / "look.png"
    code, out, err = run_command("look", write(tmp_path), "--range", "0:4095", "--picture", picture)
    assert (code, err) == (0, "")
    assert "read as uint16 0:4095" in " ".join(out.split())
    with Image.open(picture) as image:
        assert min(image.size) > 300
    again = run_command("look", write(tmp_path), "--range", "p1:p99")
    assert again.exit_code == 0
    assert "read as uint16" in " ".join(again.stdout.split())


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for name, reason in (("notes.txt", "not an image"), ("gone.tif", "No such file"), (".", "Is a directory")):
        code, _, err = run_command("look", tmp_path / name)
        assert (code, err.count("\n")) == (1, 1)
        assert str(tmp_path / name) in err
        assert reason in err


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    other = tmp_path / "thesis.png"
    other.write_bytes(b"mine")
    code, _, err = run_command("look", write(tmp_path), "--range", "0:4095", "--picture", other)
    assert code == 2
    assert other.read_bytes() == b"mine"
    assert "thesis.png" in err
