"""Recipes as YAML files: found by name or path, overridden by ``key=value``, checked key by key."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from densefeat.errors import UsageError
from densefeat.finetuning import FineTuning, check_finetuning
from densefeat.training.recipe import Recipe, Run, check

_AnyRun = TypeVar("_AnyRun", bound=Run)

_PACKAGE = "densefeat_recipes"
_COMMANDS: dict[type[Run], str] = {Recipe: "densefeat train", FineTuning: "densefeat finetune"}
_MAX_BYTES = 2**20


class Loader(yaml.SafeLoader):
    """YAML's plain types, with 1e-4 as the number that it is (YAML 1.1 wants 1.0e-4)."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def recipe_names(kind: type[Run] | None = None) -> list[str]:
    """Of the recipes in the package (of one kind), sorted; empty where it is not installed."""
    try:
        files = resources.files(_PACKAGE).iterdir()
    except ModuleNotFoundError:
        return []
    names = sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
    return names if kind is None else [name for name in names if _kind_of(recipe_text(name), name) is kind]


def recipe_text(name: str) -> str:
    """A recipe as it stands in its file. ``name``: of a recipe in the package, or the path of a YAML file.

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
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"recipe {name!r}: {path.stat().st_size:,} bytes are no recipe")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"recipe {name!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {name!r}: not a text file in UTF-8") from error


def _keys_of(kind: type[Run]) -> list[str]:
    """All that a recipe of this kind names."""
    return [field.name for field in fields(kind)]


def _kind_of(text: str, name: str) -> type[Recipe] | type[FineTuning]:
    """Of a recipe's text: FineTuning where it has a key that only those have."""
    try:
        node = yaml.compose(text, Loader)
    except yaml.YAMLError as error:
        raise _not_yaml(name, error) from error
    found = {str(key.value) for key, _ in node.value} if isinstance(node, yaml.MappingNode) else set()
    return FineTuning if found & (set(_keys_of(FineTuning)) - set(_keys_of(Recipe))) else Recipe


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or path for training from scratch, with ``key=value`` put over what it says.

    Raises UsageError for an unknown, repeated or missing key and for a value of the wrong type, with the line it stands in.
    """
    recipe = _read_recipe(name, overrides, Recipe)
    check(recipe)
    return recipe


def load_finetuning(name: str, overrides: Sequence[str] = ()) -> FineTuning:
    """As :func:`load_recipe`, for fine-tuning."""
    recipe = _read_recipe(name, overrides, FineTuning)
    check_finetuning(recipe)
    return recipe


def load_any(name: str, overrides: Sequence[str] = ()) -> Recipe | FineTuning:
    """The recipe of a name or path, of whichever kind it is."""
    load = load_finetuning if _kind_of(recipe_text(name), name) is FineTuning else load_recipe
    return load(name, overrides)


def _read_recipe(name: str, overrides: Sequence[str], kind: type[_AnyRun]) -> _AnyRun:
    text = recipe_text(name)
    if (other := _kind_of(text, name)) is not kind:
        raise UsageError(f"recipe {name} is for {_COMMANDS[other]}, not for {_COMMANDS[kind]}")
    values, places = _parse(text, name, kind)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r}: overrides are written key=value")
        _known(key, f"in {override!r}", kind)
        values[key], places[key] = _parse_value(value, override), f"in {override!r}"
    missing = [key for key in _keys_of(kind) if key not in values]
    if missing:
        raise UsageError(f"recipe {name}: without {', '.join(missing)}; see: densefeat recipes show, for a complete one")
    return _built(values, places, kind)


def _parse(text: str, name: str, kind: type[Run]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values, and the place of each key for messages."""
    try:
        node = yaml.compose(text, Loader)
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"recipe {name}: no keys in it")
        values, places = {}, {}
        for key_node, value_node in node.value:
            key, place = str(key_node.value), f"{name}, line {key_node.start_mark.line + 1}"
            _known(key, place, kind)
            if key in values:
                raise UsageError(f"{place}: {key!r} stands there twice")
            values[key], places[key] = _constructed(value_node), place
        return values, places
    except yaml.YAMLError as error:
        raise _not_yaml(name, error) from error


def _not_yaml(name: str, error: yaml.YAMLError) -> UsageError:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return UsageError(f"recipe {name}{where}: not YAML: {problem}")


def _constructed(node: yaml.Node) -> Any:
    loader = Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except ValueError as error:  # of a date that no calendar has, or a tag that does not fit
        raise yaml.constructor.ConstructorError(problem=str(error), problem_mark=node.start_mark) from error
    finally:
        loader.dispose()


def _parse_value(text: str, override: str) -> Any:
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise UsageError(f"{override!r}: {text!r} is no value in YAML") from error


def _known(key: str, place: str, kind: type[Run]) -> None:
    keys = _keys_of(kind)
    if key in keys:
        return
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(keys)}"
    raise UsageError(f"{place}: unknown key {key!r}: {hint}")


def _built(values: dict[str, Any], places: dict[str, str], kind: type[_AnyRun]) -> _AnyRun:
    """Types checked by pydantic; on a bare machine, which has none, they are taken as they are."""
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
        raise UsageError(f"{places[key]}: {key} {values[key]!r}: give {what}") from error


def dump(recipe: Run) -> str:
    """A recipe as YAML, in the order of the keys."""
    return yaml.safe_dump(vars(recipe), sort_keys=False, allow_unicode=True)
