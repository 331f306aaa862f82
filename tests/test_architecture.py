"""The house rules that code can check: which way imports run, faces of rooms, private names, and what packaging lists."""

import ast
import importlib
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# a room imports from rooms of earlier levels alone
LEVELS = [
    {"errors", "version"},
    {"base"},
    {"nets", "images"},
    {"store", "heads"},
    {"loading", "labels", "overlay"},
    {"features", "certainty"},
    {"extraction", "search"},
    {"probing"},
    {"training", "sklearn"},
    {"finetuning"},
    {"sgd_probe", "evaluation"},
    {"report", "map", "bench", "explaining", "anomaly", "segmentation"},
    {"export"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted((ROOT / "densefeat").rglob("*.py"))
USERS = [*FILES, *sorted((ROOT / "cli").glob("*.py")), *sorted((ROOT / "recipes").glob("*.py"))]
BY_PATH = {"ids": lambda path: str(path.relative_to(ROOT))}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_names(path: Path) -> set[tuple[str, str]]:
    """Pairs of a module and the name that is imported from it, empty for the module itself."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {(str(node.module), alias.name) for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    return {module for module, _ in imported_names(path)} | {
        f"{module}.{name}" for module, name in imported_names(path) if name
    }


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "densefeat" and len(parts) > 1 and parts[1] in LEVEL else None


def faces() -> dict[str, set[str]]:
    """The names that each room offers, by the stub beside its ``__init__.py``."""
    offered = {}
    for stub in (ROOT / "densefeat").glob("*/__init__.pyi"):
        tree = ast.parse(stub.read_text())
        offered[stub.parent.name] = {
            alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
    return offered


FACES = faces()


@pytest.mark.parametrize("path", FILES, **BY_PATH)
def test_imports_run_downwards(path: Path) -> None:
    module, imports = module_name(path), imported_modules(path)
    if module != "densefeat.__main__":
        assert not [name for name in imports if name.split(".")[0] in ("densefeat_cli", "cli")]
    if path.name == "__main__.py":
        return  # a program: no room imports it
    own = room_of(module)
    if own is None:
        assert module in ("densefeat", "densefeat.__main__"), f"{module}: in no room"
        return
    upward = [name for name in imports if (room := room_of(name)) and room != own and LEVEL[room] >= LEVEL[own]]
    assert not upward


@pytest.mark.parametrize("path", USERS, **BY_PATH)
def test_other_rooms_are_used_by_their_faces(path: Path) -> None:
    module = module_name(path)
    own = room_of(module)
    for source, name in imported_names(path):
        room = room_of(source)
        if room in FACES and room != own and module != "densefeat":
            assert source == f"densefeat.{room}", f"{path}: import {name} from densefeat.{room}"
            assert name in FACES[room], f"{path}: {source} does not offer {name}"


@pytest.mark.parametrize("room", sorted(FACES))
def test_faces_name_what_is_there_and_used(room: str) -> None:
    face = importlib.import_module(f"densefeat.{room}")
    assert set(face.__all__) == FACES[room]
    for name in face.__all__:
        assert hasattr(face, name), f"densefeat.{room}.{name}"
    text = "\n".join(path.read_text() for path in [*USERS, *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("densefeat/__init__.pyi"), *ROOT.glob("benchmarks/*.py")]
                     if room_of(module_name(path) if path.suffix == ".py" else "") != room)  # fmt: skip
    assert not [name for name in face.__all__ if name not in text]


def test_names_that_no_other_file_uses_are_private() -> None:
    used: dict[str, set[str]] = defaultdict(set)  # by module
    for path in USERS:
        modules = {name: f"{source}.{name}" for source, name in imported_names(path) if name}
        for source, name in imported_names(path):
            used[source].add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                used[modules[node.value.id]].add(node.attr)
    public = []
    for path in FILES:
        room = room_of(module_name(path))
        if room is None or room not in FACES:
            continue
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.decorator_list:
                continue
            if node.name not in FACES[room] | used[module_name(path)] | {"main"}:
                public.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not public


def test_private_names_stay_in_their_files() -> None:
    for path in USERS:
        private = [name for module, name in imported_names(path) if module.startswith("densefeat") and name.startswith("_")]
        assert not [name for name in private if name != "__version__"], path


def test_no_circles() -> None:
    graph = {module_name(path): imported_modules(path) for path in FILES}
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
