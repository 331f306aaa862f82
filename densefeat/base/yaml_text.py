"""YAML that others wrote."""

from pathlib import Path
from typing import Any

import yaml

MAX_YAML_BYTES = 2**20
_MAX_LEVELS = 20  # of lists and mappings in one another; recipes have three


class PlainLoader(yaml.SafeLoader):
    """A loader of YAML's plain types. Aliases, by which a few lines stand for very many values, and deep nesting are refused.

    Raises yaml.YAMLError.
    """

    _level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        problem = None
        if self.check_event(yaml.AliasEvent):
            problem = "aliases are not read: write the value itself"
        elif self._level > _MAX_LEVELS:
            problem = f"lists and mappings in more than {_MAX_LEVELS} levels"
        if problem:
            raise yaml.composer.ComposerError(problem=problem, problem_mark=self.peek_event().start_mark)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node


def read_yaml(file: Path) -> Any:
    """Read a file. Raises OSError; ValueError where it has more than 1 MiB or is not UTF-8; yaml.YAMLError."""
    if (size := file.stat().st_size) > MAX_YAML_BYTES:
        raise ValueError(f"{size:,} bytes: at most {MAX_YAML_BYTES:,} are read")
    return yaml.load(file.read_text(encoding="utf-8"), PlainLoader)
