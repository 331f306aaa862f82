"""``manifest.json``: what made a store, of which input, and the parts that are whole; and each part's own record until then."""

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
    """One image or tile without a row: its key, the stage (``read``, ``decode``, ``transform``, ``tile``, ``network``), why."""

    path: str
    stage: str
    reason: str
    x: int | None = None
    y: int | None = None


@dataclass(frozen=True)
class PartRecord:
    """A part that covers positions ``start`` to ``stop`` of its round, done up to ``reached``; ``stop`` None: to the end.

    ``skipped``: tiles without enough content. ``bytes``: of the Parquet file.
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
    """One listing of the input: the first extraction, or an update's added images. Its parts begin at ``first_part``.

    ``listing``: fingerprint of all the input; ``fingerprint`` and ``positions``: of what this round extracts.
    """

    first_part: int
    listing: str
    fingerprint: str
    positions: int | None


@dataclass(frozen=True)
class Manifest:
    """``settings``: what must be the same for a job to go on; ``provenance``: what made the rows, for people and programs.

    ``parts``: of finished rounds, or all when ``complete``. ``removed``: images with rows that the last
    listing did not have.
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
        """Of the last round: what its parts are recorded under."""
        return f"{self.job}-{len(self.rounds)}"

    def save(self, layout: Layout) -> None:
        parts = [asdict(replace(part, failures=())) for part in self.parts]  # those are in failures.parquet
        totals = {"rows": sum(part.rows for part in self.parts), "skipped": sum(part.skipped for part in self.parts)}
        content = asdict(replace(self, parts=())) | {"parts": parts}
        _write_json(layout.manifest, {"kind": _KIND, "format_version": FORMAT_VERSION, **totals, **content})


def read_manifest(layout: Layout) -> Manifest | None:
    """None where there is no manifest; OutputError where it is another program's, newer than this one, or damaged."""
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


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as beside, output_errors(path), open(beside, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)


def save_record(layout: Layout, round_id: str, record: PartRecord) -> None:
    """Tell that a part is whole, or (``reached`` before ``stop``) how far its unfinished file goes."""
    _write_json(layout.record(record.part), {"round": round_id, **asdict(record)})


def read_records(layout: Layout, manifest: Manifest) -> Iterator[PartRecord]:
    """Of the parts of the last round whose file is there in the recorded size; anything else is as if it had not been done."""
    for path in sorted(layout.records.glob("part-*.json")):
        record = read_record(layout, manifest, path)
        if record is not None:
            yield record


def read_record(layout: Layout, manifest: Manifest, path: Path) -> PartRecord | None:
    try:
        content = json.loads(path.read_text("utf-8"))
        owner = content.pop("round")
        failures = tuple(Failure(**failure) for failure in content.pop("failures"))
        record = PartRecord(**content, failures=failures)
        file = layout.part(record.part) if record.finished else layout.unfinished(record.part)
        whole = file.is_file() and file.stat().st_size == record.bytes
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a damaged one makes of it
        return None
    return record if whole and owner == manifest.round_id else None
