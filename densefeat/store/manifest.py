"""``manifest.json``: what made a store, from which input, and its parts; until a store is closed each part has a record."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from densefeat.base import atomic_file, output_errors
from densefeat.errors import OutputError
from densefeat.store.layout import Layout
from densefeat.store.writer import FORMAT_VERSION

_KIND = "densefeat store"


@dataclass(frozen=True)
class Failure:
    """An image or tile without a row: its key, the stage (``read``, ``decode``, ``transform``, ``tile``, ``network``), why."""

    path: str
    stage: str
    reason: str
    x: int | None = None
    y: int | None = None


@dataclass(frozen=True)
class PartRecord:
    """A part for positions ``start`` to ``stop`` of its round, done up to ``reached``; ``stop`` None: to the end.

    ``skipped``: tiles without enough content. ``bytes``: the Parquet file's size.
    """

    part: int
    start: int
    reached: int
    stop: int | None
    rows: int
    bytes: int
    skipped: int = 0
    failures: tuple[Failure, ...] = ()

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
    """

    settings: dict[str, Any]
    provenance: dict[str, Any]
    images: str
    rounds: tuple[Round, ...]
    parts: tuple[PartRecord, ...] = ()
    complete: bool = False
    removed: int = 0
    job: str = field(default_factory=lambda: uuid.uuid4().hex)

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
        with open(layout.manifest, encoding="utf-8") as file:
            content = json.load(file)
        if content["kind"] != _KIND or content["format_version"] > FORMAT_VERSION:
            raise OutputError(
                f"{layout.manifest}: of format {content['kind']!r} {content['format_version']}, not readable here"
            )
        return Manifest(
            settings=content["settings"],
            provenance=content["provenance"],
            images=content["images"],
            rounds=tuple(Round(**entry) for entry in content["rounds"]),
            parts=tuple(PartRecord(**(entry | {"failures": ()})) for entry in content["parts"]),
            complete=content["complete"],
            removed=content["removed"],
            job=content["job"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{layout.manifest}: not a readable manifest ({type(error).__name__}: {error})") from error


def is_manifest(layout: Layout) -> bool:
    """Check whether the folder's manifest is densefeat's, of any version.

    A damaged one counts if a folder of parts is beside it.
    """
    try:
        content = json.loads(layout.manifest.read_bytes())
    except OSError:
        return False
    except ValueError:
        return layout.data.is_dir()
    return isinstance(content, dict) and content.get("kind") == _KIND


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as beside, output_errors(path), open(beside, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)


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
        content = json.loads(path.read_text("utf-8"))
        owner = content.pop("round")
        failures = tuple(Failure(**failure) for failure in content.pop("failures"))
        record = PartRecord(**content, failures=failures)
        in_data = record.finished and not manifest.waits
        file = layout.part(record.part) if in_data else layout.unfinished(record.part)
        whole = file.is_file() and file.stat().st_size == record.bytes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a damaged file leads to
        return None
    return record if whole and owner == manifest.round_id else None


def list_finished_parts(layout: Layout, manifest: Manifest) -> list[PartRecord]:
    """Return the records of the parts in ``data/`` in order: the manifest's, and those of a job that is still running."""
    parts = {record.part: record for record in manifest.parts}
    running = () if manifest.complete or manifest.waits else read_records(layout, manifest)
    parts |= {record.part: record for record in running if record.finished}
    return [parts[part] for part in sorted(parts)]
