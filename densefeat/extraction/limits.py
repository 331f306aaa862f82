"""How many failures a job bears before it stops: a wrong folder should not take the weekend to find out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from densefeat.errors import DensefeatError, UsageError
from densefeat.store import Failure, PartRecord

_N = TypeVar("_N", int, float)
_JUDGED_FROM = 100  # positions seen, before a share of them says anything


class TooManyFailures(DensefeatError):
    """What is written stays; the same command with a higher limit goes on."""


@dataclass
class FailureLimit:
    """``count`` or ``share`` (0 to 1) of the positions seen; neither: no limit. ``first``: stop at the first failure."""

    count: int | None = None
    share: float | None = None
    first: bool = False
    seen: int = 0
    failed: int = 0

    @classmethod
    def parse(cls, on_error: str, max_failures: str | int | None) -> "FailureLimit":
        """``on_error``: ``"skip"`` or ``"fail"``; ``max_failures``: ``"20"`` or ``"5%"``."""
        if on_error not in ("skip", "fail"):
            raise UsageError(f"on error {on_error!r}: skip or fail")
        if max_failures is None:
            return cls(first=on_error == "fail")
        text = str(max_failures).strip()
        first = on_error == "fail"
        try:
            if not text.endswith("%"):
                return cls(count=_natural(int(text)), first=first)
            if (share := float(text[:-1]) / 100) <= 1:
                return cls(share=_natural(share), first=first)
        except ValueError:
            pass
        raise UsageError(f"max failures {max_failures!r}: give a number such as 20, or a share such as 5%")

    def count_earlier(self, records: Iterable[PartRecord]) -> None:
        """What earlier runs of the same job went through."""
        for record in records:
            self.seen += record.reached - record.start
            self.failed += len(record.failures)

    def add(self, seen: int, failures: Sequence[Failure]) -> None:
        """Count a batch; raises TooManyFailures when the limit is passed."""
        self.seen += seen
        self.failed += len(failures)
        if not failures:
            return
        last = f"{failures[0].path}: {failures[0].reason}"
        if self.first:
            raise TooManyFailures(f"stopped at the first failure, as asked: {last}")
        if self.count is not None and self.failed > self.count:
            raise TooManyFailures(f"stopped after {self.failed} failures, more than the {self.count} allowed; the last: {last}")
        if self.seen >= _JUDGED_FROM:
            self.check_share(f"; the last: {last}")

    def check_end(self) -> None:
        """Also of few images a share can be too large."""
        self.check_share("")

    def check_share(self, told: str) -> None:
        if self.share is not None and self.failed > self.share * self.seen:
            failed = f"{self.failed} of {self.seen} images failed"
            raise TooManyFailures(f"stopped: {failed}, more than the {100 * self.share:.3g}% allowed{told}")


def _natural(value: _N) -> _N:
    if not value >= 0:
        raise ValueError(value)
    return value
