"""Errors of native code that writes: the system is asked whether its disk is full."""

from pathlib import Path

import pytest

from densefeat.export.staging import ask_system
from support.limits import limit_file_size


@pytest.mark.parametrize(
    ("error", "expected", "match"),
    [
        (RuntimeError("basic_ios::clear: iostream error"), OSError, "File too large"),
        (OSError(5, "Input/output error"), OSError, "Input/output error"),
    ],
)
def test_a_full_disk_is_the_reason(error: Exception, expected: type[Exception], match: str, tmp_path: Path) -> None:
    with pytest.raises(expected, match=match), limit_file_size(1000), ask_system(tmp_path):
        raise error
    assert not list(tmp_path.iterdir())


def test_another_reason_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of its own"), ask_system(tmp_path):
        raise RuntimeError("of its own")
    assert not list(tmp_path.iterdir())
