"""The table of networks."""

import pytest

from densefeat import UsageError
from densefeat.loading.catalogue import list_networks


def test_rows() -> None:
    (first, second) = list_networks("densenet121")
    assert (first.name, first.tag, second.tag) == ("densefeat_densenet121", "ra_in1k", "tv_in1k")
    assert (first.parameters, first.block_channels, first.input_size) == (7_978_856, (256, 512, 1024, 1024), (3, 224, 224))
    assert (first.licence, first.weights) == ("apache-2.0", "hf-hub:timm/densenet121.ra_in1k")
    (untrained,) = list_networks("*deluge*92")
    assert (untrained.tag, untrained.licence, untrained.weights) == ("", None, None)


def test_no_match() -> None:
    with pytest.raises(UsageError, match="no network fits 'resnet\\*'"):
        list_networks("resnet*")
