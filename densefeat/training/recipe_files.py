"""Recipes as YAML files: found by name or path, overridden by ``key=value``, checked key by key."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from densefeat.base import MAX_YAML_BYTES, PlainLoader, shorten_text
from densefeat.errors import UsageError
from densefeat.training.recipe import Recipe, Run, check_recipe

_AnyRun = TypeVar("_AnyRun", bound=Run)

_PACKAGE = "densefeat_recipes"
_MARKS = {"densefeat train": "data", "densefeat finetune": "mode"}  # a key that only the recipes of this command have


class _Loader(PlainLoader):
    """YAML's plain types, and 1e-4 read as a number (YAML 1.1 requires 1.0e-4)."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def recipe_names(command: str | None = None) -> list[str]:
    """List the names of the recipes in the package, sorted; empty where the package is not installed.

    ``command``: list only its recipes: ``"densefeat train"`` or ``"densefeat finetune"``.
    """
    try:
        files = resources.files(_PACKAGE).iterdir()
    except ModuleNotFoundError:
        return []
    names = sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
    return names if command is None else [name for name in names if command in recipe_commands(name)]


def recipe_text(name: str) -> str:
    """Return the text of a recipe file. ``name``: a recipe in the package, or the path of a YAML file.

    Raises UsageError where there is none, with the closest names.
    """
    if name in recipe_names():
        return resources.files(_PACKAGE).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if not name.endswith((".yaml", ".yml")):
        close = difflib.get_close_matches(name, recipe_names(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else "see: densefeat recipes"
        raise UsageError(f"unknown recipe {name!r}: {hint} (or the path of a .yaml file)")
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UsageError(f"recipe {name!r}: {path.stat().st_size:,} bytes are too many for a recipe")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"recipe {name!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {name!r}: not a text file in UTF-8") from error


def recipe_commands(name: str) -> list[str]:
    """Return the commands that a recipe is for, by the keys in its file; none where no key says so."""
    node = _parse(recipe_text(name), name)
    keys = {str(key.value) for key, _ in node.value}
    return [command for command, mark in _MARKS.items() if mark in keys]


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe for training from scratch, by name or path, with the values of ``key=value`` overrides in it.

    Raises UsageError for an unknown, repeated or missing key and for a value of the wrong type, with its line.
    """
    recipe = read_recipe(name, overrides, Recipe)
    check_recipe(recipe)
    return recipe


def read_recipe(name: str, overrides: Sequence[str], kind: type[_AnyRun]) -> _AnyRun:
    """Read a recipe of any kind; the types of its values are checked, but not the values."""
    commands = recipe_commands(name)
    if commands and kind.command not in commands:
        raise UsageError(f"recipe {name} is for {commands[0]}, not for {kind.command}")
    keys = [field.name for field in fields(kind)]
    values, places = _read_values(_parse(recipe_text(name), name), name, keys)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r}: overrides are written key=value")
        _check_key(key, f"in {override!r}", keys)
        values[key], places[key] = _parse_value(value, override), f"in {override!r}"
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    values = defaults | values  # files written before these keys were there
    missing = [key for key in keys if key not in values]
    if missing:
        raise UsageError(f"recipe {name}: {', '.join(missing)} missing; densefeat recipes show prints complete ones")
    return _build_recipe(values, places, kind)


def _parse(text: str, name: str) -> yaml.MappingNode:
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        raise _not_yaml(name, error) from error
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"recipe {name}: there are no keys in this file")
    return node


def _read_values(node: yaml.MappingNode, name: str, keys: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the value of each key, and its place in the file for messages."""
    values, places = {}, {}
    for key_node, value_node in node.value:
        key, place = str(key_node.value), f"{name}, line {key_node.start_mark.line + 1}"
        _check_key(key, place, keys)
        if key in values:
            raise UsageError(f"{place}: {key!r} is there twice")
        try:
            values[key], places[key] = _construct(value_node), place
        except yaml.YAMLError as error:
            raise _not_yaml(name, error) from error
    return values, places


def _not_yaml(name: str, error: yaml.YAMLError) -> UsageError:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return UsageError(f"recipe {name}{where}: not YAML: {problem}")


def _construct(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except ValueError as error:  # an impossible date, or a tag that does not fit its value
        raise yaml.constructor.ConstructorError(problem=str(error), problem_mark=node.start_mark) from error
    finally:
        loader.dispose()


def _parse_value(text: str, override: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise UsageError(f"{override!r}: {text!r} is not a value in YAML") from error


def _check_key(key: str, place: str, keys: list[str]) -> None:
    if key in keys:
        return
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(keys)}"
    raise UsageError(f"{place}: unknown key {key!r}: {hint}")


def _build_recipe(values: dict[str, Any], places: dict[str, str], kind: type[_AnyRun]) -> _AnyRun:
    """Build a recipe, its types checked by pydantic; on a machine without pydantic they are not checked."""
    try:
        from pydantic import ConfigDict, ValidationError, create_model
    except ImportError:
        return kind(**values)
    types: dict[str, Any] = {field.name: (field.type, ...) for field in fields(kind)}
    schema = create_model("Recipe", __config__=ConfigDict(strict=True), **types)
    try:
        return kind(**schema(**values).model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        reasons = {problem["msg"] for problem in error.errors() if problem["loc"][0] == key}
        what = " or ".join(sorted(reason.removeprefix("Input should be ") for reason in reasons))
        raise UsageError(f"{places[key]}: {key} {shorten_text(repr(values[key]))}: give {what}") from error


def dump_recipe(recipe: Run) -> str:
    """Format a recipe as YAML, in the order of its keys."""
    return dump_values(vars(recipe))


def dump_values(values: Any) -> str:
    """Format what was read from YAML as :func:`dump_recipe` writes it."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
