"""Files of tensors and facts: what is refused before it is read."""

from pathlib import Path

import numpy as np
import pytest

from densefeat.base import TensorFile
from densefeat.errors import WeightsError


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    kind = TensorFile("densefeat_test", 1, "test", path.name, "densefeat test", 4096)
    kind.save(path, {}, {"values": np.arange(5)})
    assert kind.load(path, lambda _, __, tensors: tensors["values"].tolist()) == [0, 1, 2, 3, 4]
    with path.open("r+b") as file:
        file.truncate(4097)
    with pytest.raises(WeightsError, match=r"^test .*: 4,097 bytes: at most 4,096 are read$"):
        kind.load(path, lambda *_: None)
