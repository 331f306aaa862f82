"""densefeat's own files of tensors and facts: safetensors with a version and a checksum, and facts as JSON in the metadata."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from densefeat.base.checksums import check_tensors, save_tensors
from densefeat.base.files import atomic_file
from densefeat.base.json_text import parse_json
from densefeat.base.ownership import Recognizer
from densefeat.base.text import describe_error
from densefeat.errors import WeightsError

_Content = TypeVar("_Content")
_MAX_METADATA = 2**26  # characters of JSON
_MAX_BYTES = 2**34  # of a file, all of which is read; tensors cannot be longer than their file


@dataclass(frozen=True)
class TensorFile:
    """A kind of file, such as that of probes.

    ``key``: that of the facts in the metadata, by which a file is recognized; ``version``: the newest version; ``kind``: what
    messages call it, such as "probe"; ``name``: of such a file in the folder that the command ``writer`` writes; ``max_bytes``:
    larger files are refused before they are read.
    """

    key: str
    version: int
    kind: str
    name: str
    writer: str
    max_bytes: int = _MAX_BYTES

    def find(self, path: str | Path) -> Path:
        """Return the file that the user named, directly or by its folder, whether it exists or not."""
        path = Path(path)
        return path / self.name if path.is_dir() else path

    def describe(self, path: Path | None) -> str:
        """Return how messages name what was loaded from a file, or was not."""
        return f"this {self.kind}" if path is None else f"{self.kind} {str(path)!r}"

    def recognize(self, path: Path) -> bool:
        """Recognize a file of this kind, of any version."""
        try:
            with safe_open(path, "np") as file:
                return self.key in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    def save(
        self, path: Path, facts: Mapping[str, Any], tensors: Mapping[str, np.ndarray], is_ours: Recognizer | None = None
    ) -> None:
        """Write facts (JSON values) and tensors, whole or not at all.

        ``is_ours``: as for :func:`densefeat.base.files.atomic_file`. Raises OutputError if the file cannot be written.
        """
        text = json.dumps({"version": self.version, **facts}, ensure_ascii=False)
        arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        with atomic_file(path, is_ours) as beside:
            save_tensors(save_file, arrays, beside, {self.key: text})

    def load(self, path: str | Path, parse: Callable[[Path, dict[str, Any], dict[str, np.ndarray]], _Content]) -> _Content:
        """Find a file, read its facts and its tensors, and return what ``parse`` makes of them and of the file's path.

        Raises WeightsError for a file that is missing, damaged, of a newer version, or of another kind; whatever ``parse``
        raises counts as damage.
        """
        path = self.find(path)
        subject = self.describe(path)
        if not path.is_file():
            raise WeightsError(f"{subject}: no such file; give the folder of `{self.writer} --out`, or the {self.name} in it")
        if (size := path.stat().st_size) > self.max_bytes:
            raise WeightsError(f"{subject}: {size:,} bytes: at most {self.max_bytes:,} are read")
        try:
            check_tensors(path, subject)
            with safe_open(path, "np") as file:
                text = (file.metadata() or {}).get(self.key)
                if text is None or len(text) > _MAX_METADATA:
                    raise WeightsError(f"{subject}: not a {self.kind} of densefeat")
                facts = parse_json(text)
                found = facts["version"]
                if type(found) is not int or found > self.version:
                    newest = f"this one reads up to {self.version}: update densefeat"
                    raise WeightsError(f"{subject}: its version is {found}, {newest}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            return parse(path, facts, tensors)
        except WeightsError:
            raise
        except Exception as error:  # a damaged file can make the readers raise anything
            reason = describe_error(error)
            raise WeightsError(f"{subject}: damaged, or not a {self.kind} ({type(error).__name__}: {reason})") from error
