"""Tables beside a store that densefeat replaces as long as nobody has changed them."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densefeat.base import atomic_file, has_kind, output_errors, parse_json, refuse_stranger, write_csv
from densefeat.nets import file_sha256
from densefeat.store import is_store


@dataclass(frozen=True)
class RecordedTable:
    """A CSV file beside a store, and the record by which it is known: one that the user has changed since is the user's.

    ``header``: what its first line looks like; ``store``: its rows; ``record``: a JSON file of the kind ``kind``.
    """

    path: Path
    header: re.Pattern[bytes]
    store: Path
    record: Path
    kind: str

    def refuse_strangers(self) -> None:
        """Raise an error where something else has the name of the table or of its record."""
        refuse_stranger(self.record, has_kind(self.kind))  # which the next line reads
        refuse_stranger(self.path, self._is_own)

    def write(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write the table, whole or not at all. Raises OutputError, and the errors of :meth:`refuse_strangers`."""
        with atomic_file(self.path, self._is_own) as beside, output_errors(self.path):
            with open(beside, "w", encoding="utf-8", newline="") as file:
                write_csv(file, header, rows, repr(str(self.path)))
            self._keep_record(beside)

    def _is_own(self, path: Path) -> bool:
        """Recognize the table, unless it was changed since; earlier versions kept no record of it."""
        with open(path, "rb") as file:
            if not (self.header.fullmatch(file.readline(1000)) and is_store(self.store)):
                return False
        recorded = self._read_record()
        return not recorded or file_sha256(path) in recorded

    def _read_record(self) -> list[str]:
        known = parse_json(self.record.read_bytes()).get("sha256") if self.record.is_file() else None
        return known if isinstance(known, list) else []

    def _keep_record(self, beside: Path) -> None:
        """Record the table that is about to replace another, and the one there, which stays if the process ends before that."""
        known = [file_sha256(file) for file in (beside, self.path) if file.is_file()]
        with atomic_file(self.record, has_kind(self.kind)) as beside_record:
            beside_record.write_text(json.dumps({"kind": self.kind, "sha256": known}) + "\n", encoding="utf-8")
