"""The wheel holds what it should, and works where only it is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="POSIX layout of virtual environments"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked and new files, as a fresh clone would have them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the two packages from the index that the command line itself needs."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    subprocess.run([*pip, "click", "lazy_loader"], check=True)
    return folder


def test_holds_exactly_the_packages(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    source = {"densefeat": "densefeat", "cli": "densefeat_cli", "recipes": "densefeat_recipes"}
    expected = set()
    for folder, package in source.items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(str(Path(package, path.relative_to(ROOT / folder))))
    assert names - metadata == expected
    assert {"densefeat/nets/bundled/densenet_bc100_k12.tin200.safetensors", "densefeat/py.typed"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    assert wheel.stat().st_size < 4_000_000


def test_help_in_a_fresh_environment(fresh: Path) -> None:
    ended = subprocess.run([fresh / "bin/densefeat", "--help"], capture_output=True, text=True, cwd=fresh, check=True)
    assert "Example: densefeat extract" in ended.stdout


def test_the_installed_wheel_extracts(fresh: Path, photo_folder: Path, tmp_path: Path) -> None:
    """densefeat comes from the wheel, its dependencies from this environment."""
    environment = os.environ | {"PYTHONPATH": sysconfig.get_paths()["purelib"]}
    command = [fresh / "bin/densefeat", "extract", "--images", photo_folder, "--out", tmp_path / "e.parquet"]
    command += ["--model", "densefeat_densenet_bc100_k12"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.stdout.startswith(f"wrote {tmp_path}/e.parquet: 12 rows"), ended.stderr
    where = subprocess.run([fresh / "bin/python", "-c", "import densefeat; print(densefeat.__file__)"], capture_output=True,
                           text=True, env=environment, cwd=tmp_path)  # fmt: skip
    assert where.stdout.startswith(str(fresh))
