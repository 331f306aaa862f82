"""Networks split into stages: the modules of each block together, learning rates that fall towards the stem."""

import pytest
import timm
import torch

import densefeat  # noqa: F401  (registers the models)
from densefeat.errors import UsageError
from densefeat.finetuning.stages import parameter_groups, set_trainable, split_into_stages, trainable_stages
from densefeat.heads.modules import HeadedNet
from support.helpers import BUNDLED
from support.runs import tiny_finetuning


@pytest.mark.parametrize(
    ("model", "stages", "places"),
    [
        (
            "densefeat_densenet121", 5,
            {"features.conv0": 1, "features.denseblock1.denselayer1.conv1": 1, "features.transition1.conv": 2,
             "features.denseblock4.denselayer16.conv2": 4, "features.norm5": 4, "classifier": 5},
        ),
        ("densefeat_delugenet146", 4, {"features.conv0": 1, "features.block2.opener": 2, "classifier": 4}),
        ("resnet18", 6, {"conv1": 1, "layer1.0.conv1": 2, "layer2.0.conv1": 3, "layer4.1.bn2": 5, "fc": 6}),
        ("convnext_atto", 5, {"stem.0": 1, "stages.0.blocks.0.conv_dw": 1, "stages.3.blocks.0.conv_dw": 4, "head.fc": 5}),
    ],
)  # fmt: skip
def test_stages(model: str, stages: int, places: dict[str, int]) -> None:
    network = timm.create_model(model)
    found = split_into_stages(network)
    assert found.head == stages
    assert {name: found.by_module[name] for name in places} == places
    order = [found.find(name) for name, _ in network.named_parameters()]
    assert order == sorted(order)
    headed = HeadedNet(timm.create_model(model, num_classes=0), "cross-layer", 8, 3)
    inside = split_into_stages(headed)
    assert {name: inside.by_module[f"backbone.{name}"] for name in places if name not in ("classifier", "fc", "head.fc")} == {
        name: stage for name, stage in places.items() if stage < stages
    }
    assert inside.find("head.classifier.weight") == stages


def test_rates_fall_by_block(tmp_path) -> None:
    network = timm.create_model("densefeat_densenet121")
    recipe = tiny_finetuning(tmp_path, layer_decay=0.5, weight_decay=0.1)
    stages = split_into_stages(network)
    groups = parameter_groups(network, recipe, stages, {1, 2, 3, 4, 5})
    assert sorted({group["lr_scale"] for group in groups}) == [0.0625, 0.125, 0.25, 0.5, 1.0]  # the stem's is no 4e-8
    parameters = [p for group in groups for p in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(network.parameters()))
    assert all(p.ndim == 1 for group in groups if not group["weight_decay"] for p in group["params"])
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    every = parameter_groups(network, tiny_finetuning(tmp_path, decay_norm=True, weight_decay=0.1), stages, {4, 5})
    assert {group["weight_decay"] for group in every} == {0.1}
    assert {group["lr_scale"] for group in every} == {0.75, 1.0}


def test_frozen_modules_are_in_eval_mode(tmp_path) -> None:
    network = timm.create_model(BUNDLED)
    stages = split_into_stages(network)
    recipe = tiny_finetuning(tmp_path, mode="blocks:2-3")
    set_trainable(network, stages, trainable_stages(recipe, stages, head_only=False), freeze_norm=False)
    assert {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad and name.startswith("features.")} == {
        "transition1", "denseblock2", "transition2", "denseblock3", "norm5",
    }  # fmt: skip
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.training == (stages.by_module[name] > 1)
    set_trainable(network, stages, trainable_stages(recipe, stages, head_only=True), freeze_norm=False)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    with pytest.raises(UsageError, match="mode 'blocks:3-9': the network has blocks 1 to 3"):
        trainable_stages(tiny_finetuning(tmp_path, mode="blocks:3-9"), stages, head_only=False)
