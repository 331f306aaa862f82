"""JSON from files that anybody may have written."""

import json
import math
from typing import Any

_MAX_DEPTH = 100  # far from where functions that walk through the content would need too many frames


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError for what is none, is not UTF-8, or is nested more than 100 levels deep."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(map(text.count, brackets)) > _MAX_DEPTH:  # type: ignore[arg-type]
        _check_depth(content)
    return content


def is_number(value: object) -> bool:
    """Check for a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_depth(content: Any) -> None:
    level, depth = [content], 0
    while level := [inner for outer in level for inner in _list_inner(outer) if isinstance(inner, dict | list)]:
        depth += 1
        if depth >= _MAX_DEPTH:
            raise ValueError("nested too deeply")


def _list_inner(outer: Any) -> Any:
    return outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
