"""How many failures a job accepts before it stops, so that a wrong folder is noticed at once and not after hours."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from densefeat.errors import DensefeatError, UsageError
from densefeat.store import Failure, PartRecord

_N = TypeVar("_N", int, float)
_FEWEST_POSITIONS = 100  # before a share of failures is judged


class TooManyFailures(DensefeatError):
    """An error: more failures than allowed. What is written stays; the same command with a higher limit resumes."""


@dataclass
class FailureLimit:
    """A limit on failures: ``count`` or ``share`` (0 to 1) of the positions seen, none if both are None.

    With ``first``, the job stops at the first failure.
    """

    count: int | None = None
    share: float | None = None
    first: bool = False
    seen: int = 0
    failed: int = 0

    @classmethod
    def parse(cls, on_error: str, max_failures: str | int | None) -> "FailureLimit":
        """Read the limit from ``on_error``, ``"skip"`` or ``"fail"``, and ``max_failures``, such as ``"20"`` or ``"5%"``."""
        if on_error not in ("skip", "fail"):
            raise UsageError(f"on error {on_error!r}: choose skip or fail")
        if max_failures is None:
            return cls(first=on_error == "fail")
        text = str(max_failures).strip()
        first = on_error == "fail"
        try:
            if not text.endswith("%"):
                return cls(count=_check_natural(int(text)), first=first)
            if (share := float(text[:-1]) / 100) <= 1:
                return cls(share=_check_natural(share), first=first)
        except ValueError:
            pass
        raise UsageError(f"max failures {max_failures!r}: give a number such as 20, or a share such as 5%")

    def count_earlier(self, records: Iterable[PartRecord]) -> None:
        """Count the positions and failures of earlier runs of the same job."""
        for record in records:
            self.seen += record.reached - record.start
            self.failed += len(record.failures)

    def add(self, seen: int, failures: Sequence[Failure]) -> None:
        """Count a batch. Raises TooManyFailures if the limit is exceeded."""
        self.seen += seen
        self.failed += len(failures)
        if not failures:
            return
        last = f"{failures[0].path}: {failures[0].reason}"
        if self.first:
            raise TooManyFailures(f"stopped at the first failure, as --on-error fail says: {last}")
        if self.count is not None and self.failed > self.count:
            raise TooManyFailures(f"stopped after {self.failed} failures, more than the {self.count} allowed; the last: {last}")
        if self.seen >= _FEWEST_POSITIONS:
            self._check_share(f"; the last: {last}")

    def check_end(self) -> None:
        """Check the share once more at the end, so that small inputs are held to it, too."""
        self._check_share("")

    def _check_share(self, detail: str) -> None:
        if self.share is not None and self.failed > self.share * self.seen:
            failed = f"{self.failed} of {self.seen} images failed"
            raise TooManyFailures(f"stopped: {failed}, more than the {100 * self.share:.3g}% allowed{detail}")


def _check_natural(value: _N) -> _N:
    if not value >= 0:
        raise ValueError(value)
    return value
