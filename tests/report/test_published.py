"""The papers' figures, and what their networks cost, counted again."""

import pytest
import timm
import torch

from densefeat.nets.zoo import VARIANTS
from densefeat.report.published import _CLASSES, _COSTS, _ERRORS, _SIZES, find_stem, published_points
from densefeat.report.stages import stages_of, sum_stages


@pytest.mark.parametrize("name", [name for name in _ERRORS if "deluge" not in name and "264" not in name])
def test_costs(name: str) -> None:
    check_costs(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in _ERRORS if "deluge" in name or "264" in name])
def test_costs_of_networks_that_take_long_to_sketch(name: str) -> None:
    check_costs(name)


def check_costs(name: str) -> None:
    data = next(iter(_ERRORS[name]))
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=_CLASSES[data])
    cost = sum_stages(stages_of(model, _SIZES[data]))
    point = next(point for point in published_points(find_stem(name)) if (point.network, point.data) == (name, data))
    assert (point.parameters, point.macs) == (cost.parameters, cost.macs)


def test_every_network_of_the_papers_tables() -> None:
    assert _ERRORS.keys() == _COSTS.keys() == VARIANTS.keys() - {"densefeat_densenet161"}  # of the released code alone
    assert {point.data for point in published_points("cifar")} == {"CIFAR-10+", "CIFAR-100+"}
    points = published_points("imagenet")
    assert [(point.network, point.top1) for point in points][:1] == [("densefeat_densenet121", 74.98)]
    assert all(point.papers for point in points)
