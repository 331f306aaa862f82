"""The pixel rule: what may be said in it, and what records of it mean."""

import json

import pytest

from densefeat.errors import UsageError
from densefeat.images import PHOTOGRAPHS, PixelRule, parse_channels

RULES = [
    PixelRule(),
    PixelRule("dtype"),
    PixelRule("0:4095"),
    PixelRule("-1000:1.5e3", nodata=-9999.0),
    PixelRule("p1:p99", bounds=((12.0, 3800.0),)),
    PixelRule("p0.5:p99.5", ("4", "3", "2"), bounds=((1.0, 2.0), (3.0, 4.0), (5.0, 6.0))),
    PixelRule("image:p2:p98", ("nir", "red", "green"), icc="ignore"),
    PixelRule("auto", tuple("123456"), in_chans=6),
]

WRONG = [
    (dict(range="4095"), "range '4095': give auto, dtype, LOW:HIGH such as 0:4095"),
    (dict(range="4095:0"), "range '4095:0'"),
    (dict(range="7:7"), "range '7:7'"),
    (dict(range="0:inf"), "range '0:inf'"),
    (dict(range="p99:p1"), "range 'p99:p1'"),
    (dict(range="p1:p101"), "range 'p1:p101'"),
    (dict(range="image:0:4095"), "range 'image:0:4095'"),
    (dict(range=("0", "1")), "range"),
    (dict(channels=("0",)), "channels 0: they are counted from 1"),
    (dict(channels=("",)), "give numbers from 1 or names"),
    (dict(channels=[1]), "give numbers from 1 or names"),
    (dict(in_chans=0), "0 input channels"),
    (dict(in_chans=5000), "5000 input channels"),
    (dict(in_chans=True), "True input channels"),
    (dict(nodata=float("nan")), "nodata nan: give a number"),
    (dict(nodata="none"), "nodata 'none': give a number"),
    (dict(icc="keep"), "icc 'keep': choose one of convert, ignore"),
    (dict(range="p1:p99", bounds=((3.0, 3.0),)), "bounds"),
    (dict(range="p1:p99", bounds=((3.0, float("nan")),)), "bounds"),
    (dict(range="auto", bounds=((0.0, 1.0),)), "bounds"),
    (dict(range="image:p1:p99", bounds=((0.0, 1.0),)), "bounds"),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_records_are_read_back(rule: PixelRule) -> None:
    assert PixelRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_values_without_a_meaning(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PixelRule(**options)


@pytest.mark.parametrize(
    "record", [None, [], "auto", {"range": "auto", "gamma": 2}, {"channels": 4}, {"bounds": [[0, "1"]], "range": "p1:p2"}]
)
def test_records_of_something_else(record: object) -> None:
    with pytest.raises(UsageError, match="pixel rule|channels|bounds"):
        PixelRule.from_json(record)


@pytest.mark.parametrize(
    ("in_chans", "channels", "bounds", "message"),
    [
        (3, ("1", "2"), None, "channels 1,2: the network reads 3, so name three, or one for grey"),
        (4, ("1",), None, "channels 1: the network reads 4, so name 4"),
        (4, None, ((0.0, 1.0), (0.0, 1.0)), "bounds of 2 channels: the network reads 4"),
    ],
)
def test_as_many_channels_as_the_network_reads(
    in_chans: int, channels: tuple | None, bounds: tuple | None, message: str
) -> None:
    rule = PixelRule("p1:p99" if bounds else "auto", channels, in_chans, bounds=bounds)
    with pytest.raises(UsageError, match=message):
        rule.check_channels()


def test_channels_are_split_at_commas() -> None:
    assert parse_channels("4, 3,NIR 2") == ("4", "3", "NIR 2")
    assert parse_channels(None) is None


def test_only_the_usual_rule_keeps_photographs() -> None:
    assert PHOTOGRAPHS.keeps_photographs
    assert PixelRule("dtype", icc="ignore").keeps_photographs
    others = [PixelRule("0:200"), PixelRule(channels=("1",)), PixelRule(in_chans=1), PixelRule(nodata=0), PixelRule("raw")]
    assert not any(rule.keeps_photographs for rule in others)


MEASURED = PixelRule("p1:p99", ("4", "3", "2"), nodata=0, icc="ignore", bounds=((1.0, 9.0),))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (PixelRule(), MEASURED),
        (PixelRule(nodata=-1), PixelRule("p1:p99", ("4", "3", "2"), nodata=-1, icc="ignore", bounds=((1.0, 9.0),))),
        (PixelRule("0:5", in_chans=4), PixelRule("0:5", ("4", "3", "2"), nodata=0, icc="ignore")),
        (PixelRule("p1:p99", bounds=((2.0, 3.0),)), PixelRule("p1:p99", ("4", "3", "2"), 3, 0, "ignore", ((2.0, 3.0),))),
    ],
)
def test_what_is_not_given_is_as_in_another_rule(given: PixelRule, expected: PixelRule) -> None:
    assert given.complete(MEASURED) == expected
