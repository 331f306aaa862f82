"""The names of the files in a store's folder."""

import re
from dataclasses import dataclass
from pathlib import Path

PART = re.compile(r"part-(\d{5,})\.parquet")
RECORD = re.compile(r"part-\d{5,}\.json")
MEASURED = re.compile(r"pixels\.safetensors")
CLOSING_FILE = re.compile(rf"{PART.pattern}|manifest\.json")  # in work/closing/
LOCK = re.compile(r"\.lock(-\d+)?")
PART_ROWS = 8192  # of a part, unless the job asks for others


@dataclass(frozen=True)
class Layout:
    """A store's folder. ``data/`` holds finished parts only; a job has ``work/`` only until it is finished.

    ``work/closing/`` holds the parts that replace those of ``data/`` and, once all of them are there, the manifest that names
    them.
    """

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def failures(self) -> Path:
        return self.root / "failures.parquet"

    @property
    def stamps(self) -> Path:
        return self.root / "stamps.parquet"

    @property
    def quantized(self) -> Path:
        """The network that made the rows, where that is one in int8."""
        return self.root / "int8.safetensors"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def measured(self) -> Path:
        """What a pass over the images has measured so far, before the first part."""
        return self.work / "pixels.safetensors"

    @property
    def records(self) -> Path:
        return self.work / "records"

    @property
    def closing(self) -> Path:
        return self.work / "closing"

    @property
    def closing_manifest(self) -> Path:
        return self.closing / self.manifest.name

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that a job makes."""
        return self.data, self.work, self.records, self.closing

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    def rank_lock(self, rank: int) -> Path:
        return self.root / f".lock-{rank}"

    def part(self, index: int) -> Path:
        return self.data / f"part-{index:05}.parquet"

    def unfinished(self, index: int) -> Path:
        return self.work / f"part-{index:05}.parquet"

    def closing_part(self, index: int) -> Path:
        return self.closing / self.part(index).name

    def record(self, index: int) -> Path:
        return self.records / f"part-{index:05}.json"
