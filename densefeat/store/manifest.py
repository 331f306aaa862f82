"""``manifest.json``: what made a store, from which input, and its parts; until a store is closed each part has a record.

Both are JSON with a checksum of its content, and every value is checked for its type: a store may have been made by a stranger.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from densefeat.base import CHECKSUM, add_checksum, atomic_file, fits_checksum, output_errors, parse_json, shorten_text
from densefeat.errors import OutputError, UsageError
from densefeat.store.checked_file import CheckedFile
from densefeat.store.layout import Layout
from densefeat.store.writer import FORMAT_VERSION

_Built = TypeVar("_Built")

_KIND = "densefeat store"
_CHECKED_VERSION = 3  # the first whose files have checksums
_MAX_INTEGER = 2**48  # rows of several parts still add up


@dataclass(frozen=True)
class Failure:
    """An image or tile without a row: its key, the stage (``read``, ``decode``, ``transform``, ``tile``, ``network``), why."""

    path: str
    stage: str
    reason: str
    x: int | None = None
    y: int | None = None
    page: int | None = None


@dataclass(frozen=True)
class PartRecord:
    """A part for positions ``start`` to ``stop`` of its round, done up to ``reached``; ``stop`` None: to the end.

    ``skipped``: tiles without enough content. ``bytes``, ``file_checksum``: of the Parquet file; earlier versions
    recorded no checksum.
    """

    part: int
    start: int
    reached: int
    stop: int | None
    rows: int
    bytes: int
    skipped: int = 0
    failures: tuple[Failure, ...] = ()
    file_checksum: str = ""

    @property
    def finished(self) -> bool:
        return self.reached == self.stop


@dataclass(frozen=True)
class Round:
    """A listing of the input: the first extraction, or the images that an update adds. Its parts begin at ``first_part``.

    ``listing``: fingerprint of the whole input; ``fingerprint``, ``positions``: of what this round extracts, and how many.
    ``replaces``: whether some of it has rows in earlier parts, whose places the new rows take when the round is closed; until
    then its parts stay in ``work/``. ``dropped``: whether it was given up before that, for a round of the images as they are
    now.
    """

    first_part: int
    listing: str
    fingerprint: str
    positions: int | None
    replaces: bool = False
    dropped: bool = False


@dataclass(frozen=True)
class Manifest:
    """The description of a store, and of how far its job has come.

    ``settings``: what must not change when a job resumes; ``provenance``: what made the rows, for people and programs;
    ``parts``: those of finished rounds, all if ``complete``; ``removed``: images with rows that the last listing lacks.
    ``failures_checksum``: that of ``failures.parquet`` once the store is complete; earlier versions recorded none.
    """

    settings: dict[str, Any]
    provenance: dict[str, Any]
    images: str
    rounds: tuple[Round, ...]
    parts: tuple[PartRecord, ...] = ()
    complete: bool = False
    removed: int = 0
    job: str = field(default_factory=lambda: uuid.uuid4().hex)
    failures_checksum: str = ""

    @property
    def round_id(self) -> str:
        """The name of the last round, which the records of its parts carry."""
        return f"{self.job}-{len(self.rounds)}"

    @property
    def last_round(self) -> int:
        """The number, from 1, of the last round that was not dropped."""
        return max(number for number, made in enumerate(self.rounds, 1) if not made.dropped)

    @property
    def waits(self) -> bool:
        """Whether the finished parts of the last round stay in ``work/`` for now: readers see the rows of earlier rounds."""
        return self.rounds[-1].replaces and not self.complete

    def save(self, layout: Layout, file: Path | None = None) -> None:
        """Write the manifest. ``file``: to another place than the store's own."""
        parts = [asdict(replace(part, failures=())) for part in self.parts]  # failures.parquet has those
        totals = {"rows": sum(part.rows for part in self.parts), "skipped": sum(part.skipped for part in self.parts)}
        content = asdict(replace(self, parts=())) | {"parts": parts}
        _write_json(file or layout.manifest, {"kind": _KIND, "format_version": FORMAT_VERSION, **totals, **content})


def read_manifest(layout: Layout) -> Manifest | None:
    """Read a store's manifest; None where there is none.

    Raises OutputError where it is another program's, of a newer version, or damaged.
    """
    try:
        content = parse_json(layout.manifest.read_bytes())
        kind, version = content["kind"], content["format_version"]
        if kind != _KIND or type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            raise OutputError(f"{layout.manifest}: of format {kind!r} {version}, not readable here")
        _check_content(content, required=version >= _CHECKED_VERSION)
        return _build(Manifest, content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = shorten_text(f"{type(error).__name__}: {error}")
        raise OutputError(
            f"{layout.manifest}: not a readable manifest ({reason}): restore it from a copy, or extract to a new folder"
        ) from error


def require_manifest(layout: Layout) -> Manifest:
    """Read the manifest of a store. Raises UsageError where there is none, OutputError as :func:`read_manifest` does."""
    if manifest := read_manifest(layout):
        return manifest
    problem = "no manifest.json in it" if layout.root.is_dir() else "no such file or folder"
    raise UsageError(f"store {str(layout.root)!r}: {problem}; give the --out of `densefeat extract`")


def _check_content(content: dict[str, Any], required: bool) -> None:
    """Raise ValueError where a JSON object is not what its checksum was made of, or has none although it is ``required``."""
    if (required or CHECKSUM in content) and not (CHECKSUM in content and fits_checksum(content)):
        raise ValueError("it is not as it was written")


def _build(kind: type[_Built], content: dict[str, Any]) -> _Built:
    """Build a dataclass from a JSON object. Raises TypeError or ValueError where a value has not the type of its field.

    All integers of these classes are counts, numbers or places. Keys that are no fields are left out.
    """
    hints = _read_type_hints(kind)  # type: ignore[arg-type]
    return kind(**{name: _convert(name, content[name], hint) for name, hint in hints.items() if name in content})


@cache
def _read_type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _convert(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_build(get_args(hint)[0], entry) for entry in value)
    kind = get_origin(hint) if get_origin(hint) in (dict, tuple) else hint
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is {value!r}")
    if isinstance(value, int) and not 0 <= value < _MAX_INTEGER:
        raise ValueError(f"{name} is {value!r}")
    return value


def is_manifest(layout: Layout) -> bool:
    """Check whether the folder's manifest is densefeat's, of any version.

    A damaged one counts if a folder of parts is beside it.
    """
    try:
        content = parse_json(layout.manifest.read_bytes())
    except OSError:
        return False
    except ValueError:
        return layout.data.is_dir()
    return isinstance(content, dict) and content.get("kind") == _KIND


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as beside, output_errors(path), open(beside, "w", encoding="utf-8") as file:
        json.dump(add_checksum(content), file, ensure_ascii=False, indent=1)


def describe_file(record: PartRecord, file: Path) -> PartRecord:
    """Return the record with the size and the checksum of its Parquet file. Raises OutputError where that is damaged."""
    with CheckedFile(file) as part:
        return replace(record, bytes=file.stat().st_size, file_checksum=part.checksum)


def save_record(layout: Layout, round_id: str, record: PartRecord) -> None:
    """Record that a part is finished or, with ``reached`` before ``stop``, how far its unfinished file goes."""
    _write_json(layout.record(record.part), {"round": round_id, **asdict(record)})


def read_records(layout: Layout, manifest: Manifest) -> Iterator[PartRecord]:
    """Yield the records of the last round's parts whose file has the recorded size; others have to be extracted again."""
    for path in sorted(layout.records.glob("part-*.json")):
        record = read_record(layout, manifest, path)
        if record is not None:
            yield record


def read_record(layout: Layout, manifest: Manifest, path: Path) -> PartRecord | None:
    """Read a record; None where it is damaged, of another round, or the part's file has another size."""
    try:
        content = parse_json(path.read_bytes())
        _check_content(content, required=False)
        record = _build(PartRecord, content)
        in_data = record.finished and not manifest.waits
        file = layout.part(record.part) if in_data else layout.unfinished(record.part)
        whole = file.is_file() and file.stat().st_size == record.bytes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a damaged file leads to
        return None
    return record if whole and content.get("round") == manifest.round_id else None


def list_finished_parts(layout: Layout, manifest: Manifest) -> list[PartRecord]:
    """Return the records of the parts in ``data/`` in order: the manifest's, and those of a job that is still running."""
    parts = {record.part: record for record in manifest.parts}
    running = () if manifest.complete or manifest.waits else read_records(layout, manifest)
    parts |= {record.part: record for record in running if record.finished}
    return [parts[part] for part in sorted(parts)]
