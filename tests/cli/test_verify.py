"""``densefeat verify``: what it says of whole and of damaged stores and single files."""

from pathlib import Path

import pytest

from support.commands import run_command
from support.stores import flip_bit, random_features, write_rows, write_store


def test_a_whole_store(folder: Path) -> None:
    write_store(Path("s"))
    size = sum(path.stat().st_size for path in Path("s/data").iterdir())
    assert run_command("verify", "s") == (0, f"s: 3 parts, 30 rows, {size / 1000:.1f} kB: no damage\n", "")


def test_a_damaged_store(folder: Path) -> None:
    write_store(Path("s"))
    flip_bit(Path("s/data/part-00001.parquet"), 500)
    Path("s/data/part-00002.parquet").unlink()
    code, out, err = run_command("verify", "s")
    first, second = out.splitlines()
    assert code == 1
    assert first.startswith("s/data/part-00001.parquet: damaged: its columns ")
    assert first.endswith(' are not as they were written: rows 10 to 19, é/10, "10".jpg to é/19, "19".jpg')
    assert second == "s/data/part-00002.parquet: No such file or directory: rows 20 to 29"
    assert err == (
        "densefeat: s: damaged files: 2, with 20 of 30 rows: the densefeat extract that made the store makes them again\n"
    )


def test_a_damaged_single_file(folder: Path) -> None:
    write_rows(Path("s.parquet"), random_features(30), 0, 30)
    assert run_command("verify", "s.parquet")[0] == 0
    flip_bit(Path("s.parquet"), 500)
    code, out, err = run_command("verify", "s.parquet")
    assert (code, out.endswith(": rows 0 to 29\n")) == (1, True)
    assert "with 30 of 30 rows" in err


@pytest.mark.parametrize(("name", "message"), [("none", "no such file or folder"), ("folder", "no manifest.json in it")])
def test_no_store(name: str, message: str, folder: Path) -> None:
    Path("folder").mkdir()
    code, _, err = run_command("verify", name)
    assert (code, message in err) == (2, True)
