"""Recipes as YAML files: found by name or path, overridden by ``key=value``, checked key by key."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from densefeat.errors import UsageError
from densefeat.training.recipe import Recipe, check

PACKAGE = "densefeat_recipes"
KEYS = [field.name for field in fields(Recipe)]
MAX_BYTES = 2**20


class Loader(yaml.SafeLoader):
    """YAML's plain types, with 1e-4 as the number that it is (YAML 1.1 wants 1.0e-4)."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def recipe_names() -> list[str]:
    """Of the recipes in the package, sorted; empty where it is not installed."""
    try:
        files = resources.files(PACKAGE).iterdir()
    except ModuleNotFoundError:
        return []
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A recipe as it stands in its file. ``name``: of a recipe in the package, or the path of a YAML file.

    Raises UsageError where there is none, with the closest names.
    """
    if name in recipe_names():
        return resources.files(PACKAGE).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if not name.endswith((".yaml", ".yml")):
        close = difflib.get_close_matches(name, recipe_names(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else "see: densefeat recipes"
        raise UsageError(f"unknown recipe {name!r}: {hint} (or the path of a .yaml file)")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"recipe {name!r}: {path.stat().st_size:,} bytes are no recipe")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"recipe {name!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {name!r}: not a text file in UTF-8") from error


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a name or path, with ``key=value`` put over what it says.

    Raises UsageError for an unknown, repeated or missing key and for a value of the wrong type, with the line it stands in.
    """
    values, places = parse(recipe_text(name), name)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r}: overrides are written key=value")
        known(key, f"in {override!r}")
        values[key], places[key] = parse_value(text, override), f"in {override!r}"
    missing = [key for key in KEYS if key not in values]
    if missing:
        raise UsageError(f"recipe {name}: without {', '.join(missing)}; see: densefeat recipes show, for a complete one")
    recipe = built(values, places)
    check(recipe)
    return recipe


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Values, and the place of each key for messages."""
    try:
        node = yaml.compose(text, Loader)
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"recipe {name}: no keys in it")
        values, places = {}, {}
        for key_node, value_node in node.value:
            key, place = str(key_node.value), f"{name}, line {key_node.start_mark.line + 1}"
            known(key, place)
            if key in values:
                raise UsageError(f"{place}: {key!r} stands there twice")
            values[key], places[key] = constructed(value_node), place
        return values, places
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"recipe {name}{where}: not YAML: {problem}") from error


def constructed(node: yaml.Node) -> Any:
    loader = Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except ValueError as error:  # of a date that no calendar has, or a tag that does not fit
        raise yaml.constructor.ConstructorError(problem=str(error), problem_mark=node.start_mark) from error
    finally:
        loader.dispose()


def parse_value(text: str, override: str) -> Any:
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise UsageError(f"{override!r}: {text!r} is no value in YAML") from error


def known(key: str, place: str) -> None:
    if key in KEYS:
        return
    close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(KEYS)}"
    raise UsageError(f"{place}: unknown key {key!r}: {hint}")


def built(values: dict[str, Any], places: dict[str, str]) -> Recipe:
    """Types checked by pydantic; on a bare machine, which has none, they are taken as they are."""
    try:
        from pydantic import ConfigDict, ValidationError, create_model
    except ImportError:
        return Recipe(**values)
    types: dict[str, Any] = {field.name: (field.type, ...) for field in fields(Recipe)}
    schema = create_model("Recipe", __config__=ConfigDict(strict=True), **types)
    try:
        return Recipe(**schema(**values).model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        reasons = {problem["msg"] for problem in error.errors() if problem["loc"][0] == key}
        what = " or ".join(sorted(reason.removeprefix("Input should be ") for reason in reasons))
        raise UsageError(f"{places[key]}: {key} {values[key]!r}: give {what}") from error


def dump(recipe: Recipe) -> str:
    """A recipe as YAML, in the order of the keys."""
    return yaml.safe_dump(vars(recipe), sort_keys=False, allow_unicode=True)
