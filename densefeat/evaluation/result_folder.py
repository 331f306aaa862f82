"""Folders of results: a store, and what is made of it for people, none of which replaces what is not densefeat's."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densefeat.base import (
    Recognizer,
    atomic_file,
    check_output_name,
    has_kind,
    output_errors,
    parse_json,
    refuse_links,
    refuse_other_content,
    refuse_stranger,
    write_csv,
)
from densefeat.errors import UnknownRange, UsageError
from densefeat.extraction import ColumnsNet, ExtractResult, extract
from densefeat.nets import file_sha256
from densefeat.overlay import find_stranger
from densefeat.store import Layout, Store, check_store_folder, is_store

_LONGEST_HEADER = 2**20  # bytes


def list_place_columns(store: Store) -> list[str]:
    """List the columns of a store that a table of its rows begins with: which image a row is of, and its label."""
    return [name for name in ("path", "page", "x", "y", "label") if name in store.schema.names]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The content of a :class:`ResultFolder`: each image has a row in ``store`` and a line in ``table``.

    ``failures``: the number of images that could not be read; ``failures_path``: the reasons. ``not_drawn``: pictures that
    could not be made, by name, with the reasons.
    """

    store: Path
    table: Path
    rows: int
    failures: int
    failures_path: Path
    not_drawn: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultFolder:
    """A folder with a store, a CSV table of its rows and, beside that, other files and folders of pictures.

    ``what``: the results, in messages. ``header``: what the table's first line looks like; it has a record, by which it is
    known: one that the user has changed since is the user's. ``kind``: that of the record. ``files``: how each of the other
    files is recognized, by name.

    Raises an error, before anything is computed, where something else has the name of an output, or is beside them: UsageError
    for what densefeat did not write, and links; OutputError as of a store's folder.
    """

    root: Path
    what: str
    store_name: str
    table_name: str
    header: re.Pattern[bytes]
    kind: str
    files: Mapping[str, Recognizer] = field(default_factory=dict)
    pictures: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_output_name(self.root)
        refuse_other_content(self.root, {self.store_name, self.table_name, *self.files, *self.pictures}, self.what)
        refuse_links([self.store, *(self.root / name for name in self.pictures)])
        check_store_folder(Layout(self.store))
        refuse_stranger(self._record, has_kind(self.kind))  # which the next line reads
        for name, is_ours in {self.table_name: self._is_own_table, **self.files}.items():
            refuse_stranger(self.root / name, is_ours)
        for name in self.pictures:
            if (stranger := find_stranger(self.root / name)) is not None:
                raise UsageError(f"output {str(stranger)!r} was not written by this command: move it away")

    @property
    def store(self) -> Path:
        return self.root / self.store_name

    @property
    def table(self) -> Path:
        return self.root / self.table_name

    @property
    def _record(self) -> Path:
        return self.root / f".{self.table.stem}.json"

    def extract(self, model: str | Path, net: ColumnsNet, images: str | Path, **options: Any) -> ExtractResult:
        """Write what a network computes of images to the store.

        ``model``: as the user named it; ``options``: of :func:`densefeat.extract`, which says what is raised.
        """
        try:
            return extract(images, self.store, net, **options)
        except UnknownRange as error:
            if Path(model).exists():
                raise UsageError(
                    f"{error}. But {str(model)!r} learnt from images of range {net.pixel_rule.range!r}: convert them to that"
                    " kind, or make it again with a range that counts for both"
                ) from error
            raise

    def describe(self, result: ExtractResult) -> dict[str, Any]:
        """Return the fields of :class:`Results`, but for pictures."""
        counts = {name: getattr(result, name) for name in ("rows", "failures", "failures_path")}
        return {"store": result.path, "table": self.table, **counts}

    def write_table(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write the table, whole or not at all. Raises OutputError, and UsageError where somebody else's is there now."""
        with atomic_file(self.table, self._is_own_table) as beside, output_errors(self.table):
            with open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                write_csv(file, header, rows, repr(str(self.table)))
            self._keep_record(beside)

    def _is_own_table(self, path: Path) -> bool:
        """Recognize the table, unless it was changed since; earlier versions kept no record of it."""
        with open(path, "rb") as file:
            if not (self.header.fullmatch(file.readline(_LONGEST_HEADER)) and is_store(self.store)):
                return False
        recorded = self._read_record()
        return not recorded or file_sha256(path) in recorded

    def _read_record(self) -> list[str]:
        known = parse_json(self._record.read_bytes()).get("sha256") if self._record.is_file() else None
        return known if isinstance(known, list) else []

    def _keep_record(self, beside: Path) -> None:
        """Record the table that is about to replace another, and the one there, which stays if the process ends before that."""
        known = [file_sha256(file) for file in (beside, self.table) if file.is_file()]
        with atomic_file(self._record, has_kind(self.kind)) as beside_record:
            beside_record.write_text(json.dumps({"kind": self.kind, "sha256": known}) + "\n", encoding="utf-8")
