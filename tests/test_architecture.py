"""The house rules that code can check: which way imports run, and that packaging names every folder."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# each room may import those before its own level, and its neighbours' only where listed earlier
LEVELS = [{"errors", "version"}, {"nets", "images", "store"}, {"features"}, {"extract", "search", "sklearn"}, {"heads"}, {"training"},
          {"report", "export", "bench"}]  # fmt: skip
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted((ROOT / "densefeat").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "densefeat" and len(parts) > 1 and parts[1] in LEVEL else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    imports = imported_modules(path)
    if module != "densefeat.__main__":
        assert not [name for name in imports if name.split(".")[0] in ("densefeat_cli", "cli")]
    own = room_of(module)
    if own is None:
        assert module in ("densefeat.__init__", "densefeat.__main__"), f"{module}: in no room"
        return
    upward = [name for name in imports if (room := room_of(name)) and room != own and LEVEL[room] >= LEVEL[own]]
    assert not upward


def test_no_circles() -> None:
    graph = {}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[module] = imported_modules(path)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for name in graph[module] & set(graph) - {module}:
                visit(name, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_every_folder_with_code_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    top = {"cli": "densefeat_cli", "recipes": "densefeat_recipes", "densefeat": "densefeat"}
    folders = {path.parent.relative_to(ROOT) for name in top for path in (ROOT / name).rglob("*.py")}
    packages = {".".join((top[folder.parts[0]], *folder.parts[1:])) for folder in folders}
    assert set(declared["packages"]) == packages
    assert declared["package-dir"] == {package: folder for folder, package in top.items()}
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)


def test_files_stay_small() -> None:
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := path.read_text().count("\n")) > 400}
    assert not long
