"""Work that is long and can be interrupted: what of it is done, in a file of JSON lines that is whole at any time."""

import json
from pathlib import Path
from typing import Any

from densefeat.base import atomic_file
from densefeat.errors import UsageError


class Journal:
    """Results by key, noted one by one. ``path`` None: kept in memory alone.

    ``about``: what the work is on, JSON; the file's first line. Raises UsageError where the file is of other work, or is none
    of these.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.results: dict[str, Any] = {}
        if path is not None and path.exists():
            self.results = self.read(path)

    def read(self, path: Path) -> dict[str, Any]:
        try:
            before, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            results = {line["key"]: line["result"] for line in lines}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UsageError(
                f"{str(path)!r} is in the way, and holds nothing to go on from: remove it, or name another --out"
            ) from error
        if before != self.about:
            same = before if isinstance(before, dict) else {}
            names = ", ".join(name for name in same | self.about if same.get(name) != self.about.get(name))
            raise UsageError(f"{str(path)!r} is of other work ({names} differ): remove it, or name another --out")
        return results

    def __contains__(self, key: str) -> bool:
        return key in self.results

    def __getitem__(self, key: str) -> Any:
        return self.results[key]

    def note(self, key: str, result: Any) -> None:
        """OutputError where the file cannot be written."""
        self.results[key] = result
        if self.path is None:
            return
        lines = [self.about, *({"key": name, "result": value} for name, value in self.results.items())]
        with atomic_file(self.path) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
