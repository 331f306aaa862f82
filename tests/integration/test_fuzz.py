"""Files damaged at random: a reader returns what the good file holds or refuses with a DensefeatError, in bounded time and memory.

A case is a kind of file, a seed and a number, and a fault begins with them: ``python -m support.fuzz run 2 203``, in tests/, runs
it alone. ``FUZZ_SEED=7 FUZZ_CASES=10000`` lets the slow test run other cases, and so many of a quick kind: about an hour.
"""

import os

import pytest

from support.fuzz import Case, find_faults
from support.fuzz_kinds import KINDS

_SEED, _CASES = int(os.environ.get("FUZZ_SEED", 2)), int(os.environ.get("FUZZ_CASES", 600))


def list_cases(seed: int, count: int) -> list[Case]:
    """List cases of every kind, ``count`` of a quick one."""
    return [Case(name, seed, number) for name, kind in KINDS.items() for number in range(1 + count // kind.cost)]


def test_a_few_damaged_files() -> None:
    faults = list(find_faults(list_cases(1, 9)))
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_many_damaged_files() -> None:
    faults = list(find_faults(list_cases(_SEED, _CASES)))
    assert not faults, "\n".join(faults)
