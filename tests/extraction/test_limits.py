"""When a job gives up."""

import pytest

from densefeat import UsageError
from densefeat.extraction.limits import FailureLimit, TooManyFailures
from densefeat.store.manifest import Failure, PartRecord

BAD = Failure("a.jpg", "decode", "the file is empty")


def feed(limit: FailureLimit, outcomes: str) -> int:
    """Batches of one, ``x`` fails; how many were borne."""
    for i, outcome in enumerate(outcomes):
        try:
            limit.add(1, [BAD] if outcome == "x" else [])
        except TooManyFailures:
            return i
    return len(outcomes)


@pytest.mark.parametrize(
    ("given", "outcomes", "borne"),
    [
        (("skip", None), "x" * 500, 500),
        (("fail", None), "..x.", 2),
        (("skip", "0"), "..x.", 2),
        (("skip", 3), "x.x.x.x.x", 6),
        (("skip", "10%"), "x" * 99, 99),  # too few to judge
        (("skip", "10%"), "x" * 20 + "." * 79 + "x", 99),
        (("skip", "50%"), ".x" * 200, 400),
        (("skip", "100%"), "x" * 300, 300),
    ],
)
def test_how_much_is_borne(given: tuple, outcomes: str, borne: int) -> None:
    assert feed(FailureLimit.parse(*given), outcomes) == borne


def test_a_share_of_few_images_is_judged_at_the_end() -> None:
    limit = FailureLimit.parse("skip", "10%")
    feed(limit, "x.........x")
    with pytest.raises(TooManyFailures, match=r"2 of 11 images failed, more than the 10% allowed"):
        limit.check_end()


def test_earlier_runs_count() -> None:
    limit = FailureLimit.parse("skip", 2)
    limit.count_earlier([PartRecord(0, 0, 10, 10, 8, 1, failures=(BAD, BAD))])
    assert feed(limit, "...x") == 3


@pytest.mark.parametrize("text", ["", "%", "x", "-1", "-3%", "101%", "nan%", "1.5"])
def test_wrong_limits(text: str) -> None:
    with pytest.raises(UsageError, match="max failures .*: give a number such as 20, or a share such as 5%"):
        FailureLimit.parse("skip", text)
