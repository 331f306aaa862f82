"""Check that a network has exactly the parts that densefeat's own code gives it: engines compute these and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from densefeat.nets import (
    Bottleneck,
    CompositeLayer,
    CrossLayerDepthwise,
    DelugeBlock,
    DelugeNet,
    DenseBlock,
    DenseLayer,
    DenseNet,
    Transition,
    has_hooks,
    is_affine_norm,
    is_plain_conv,
)

_Rule = Callable[[Any], bool]


class NotFoldable(Exception):
    """The network has a part that engines do not know; the message names it."""


def check_foldable(model: nn.Module) -> None:
    """Raise NotFoldable if the network is not a DenseNet or DelugeNet of densefeat, or if it has hooks or other parts."""
    if type(model) is not DenseNet and type(model) is not DelugeNet:
        raise NotFoldable(f"{type(model).__name__} is neither densefeat's DenseNet nor its DelugeNet")
    features: Any = model.features
    if has_hooks(model, *features.modules()):
        raise NotFoldable("hooks are registered on it")
    types = {parameter.dtype for parameter in features.parameters()}
    if types != {torch.float32}:
        raise NotFoldable(f"its parameters are {', '.join(sorted(map(str, types)))}: engines take only torch.float32")
    _check_parts("features", features, _list_feature_rules(model))


def _check_parts(name: str, module: nn.Module, rules: dict[str, _Rule]) -> None:
    """Raise NotFoldable if a module's parts are not those that have rules, or break them; check their own parts likewise."""
    if list(module._modules) != list(dict.fromkeys(rule.split(".")[0] for rule in rules)):
        raise NotFoldable(f"{name} ({type(module).__name__}) does not have the original parts")
    for part, rule in rules.items():
        child = module.get_submodule(part)
        if not rule(child) or "forward" in vars(child):
            raise NotFoldable(f"{name}.{part} ({type(child).__name__}) is not the original part")
        if (inner := _list_rules(child)) is not None:
            _check_parts(f"{name}.{part}", child, inner)


def _list_feature_rules(model: DenseNet | DelugeNet) -> dict[str, _Rule]:
    """Return a rule for each part of ``features``."""
    names = [name for name, _ in model.features.named_children()]
    imagenet = "norm0" in names
    rules = {"conv0": _is_conv(7, 2, 3) if imagenet else _is_conv(3, 1, 1)}
    if imagenet:
        rules |= {"norm0": is_affine_norm, "act0": _is_a(nn.ReLU), "pool0": _is_max_pool}
    if isinstance(model, DelugeNet):
        count = sum(name.startswith("block") for name in names)
        return rules | {f"block{i}": _is_a(DelugeBlock) for i in range(1, count + 1)} | {"act": _is_a(nn.ReLU)}
    count = sum(name.startswith("denseblock") for name in names)
    for i in range(1, count + 1):
        rules[f"denseblock{i}"] = _is_a(DenseBlock)
        if i < count:
            rules[f"transition{i}"] = _is_a(Transition)
    return rules | {"norm5": is_affine_norm, "act5": _is_a(nn.ReLU)}


def _list_rules(module: Any) -> dict[str, _Rule] | None:
    """Return a rule for each part of a module; None for a module that has no parts."""
    if isinstance(module, DenseBlock):
        return {name: _is_a(DenseLayer) for name in module}
    if isinstance(module, DenseLayer) and module.bottleneck:
        return _list_triple_rules("1", _is_conv(1, 1, 0)) | _list_triple_rules("2", _is_conv(3, 1, 1))
    if isinstance(module, DenseLayer):
        return _list_triple_rules("1", _is_conv(3, 1, 1)) | dict.fromkeys(("norm2", "act2", "conv2"), _is_a(nn.Identity))
    if isinstance(module, Transition):
        return _list_triple_rules("", _is_conv(1, 1, 0)) | {"drop": _is_a(nn.Dropout), "pool": _is_average_pool}
    if isinstance(module, DelugeBlock):
        layers = {f"layers.{i}": _is_a(CompositeLayer) for i in range(len(module.layers))}
        return {"opener": _is_opener, **layers, "aggregate": _is_a(CrossLayerDepthwise)}
    if isinstance(module, CompositeLayer):
        return {"aggregate": _is_a(CrossLayerDepthwise), "bottleneck": _is_a(Bottleneck)}
    if isinstance(module, CrossLayerDepthwise):
        norms: dict[str, _Rule] = {f"norms.{i}": is_affine_norm for i in range(len(module.norms))}
        return (norms or {"norms": _is_a(nn.ModuleList)}) | {"norm": is_affine_norm}
    if isinstance(module, Bottleneck):
        first = {"act1": _is_a(nn.ReLU), "conv1": _is_conv(1, 1, 0)}
        return first | _list_triple_rules("2", _is_conv(3, 1, 1)) | _list_triple_rules("3", _is_conv(1, 1, 0))
    if type(module) is nn.Sequential:  # the opener of a CIFAR DelugeNet
        return {"norm": is_affine_norm, "bottleneck": _is_a(Bottleneck)}
    return None


def _list_triple_rules(number: str, conv: _Rule) -> dict[str, _Rule]:
    """Return rules for a norm, a ReLU and a convolution of one number."""
    return {f"norm{number}": is_affine_norm, f"act{number}": _is_a(nn.ReLU), f"conv{number}": conv}


def _is_a(kind: type) -> _Rule:
    return lambda module: type(module) is kind


def _is_conv(kernel: int, stride: int, padding: int) -> _Rule:
    """Make a rule for square convolutions without dilation, groups or bias."""
    numbers = ((kernel, kernel), (stride, stride), (padding, padding), (1, 1), 1)

    def rule(module: Any) -> bool:
        if not is_plain_conv(module):
            return False
        return (module.kernel_size, module.stride, module.padding, module.dilation, module.groups) == numbers

    return rule


def _is_opener(module: Any) -> bool:
    return type(module) is nn.Sequential or _is_conv(1, 1, 0)(module) or _is_conv(3, 2, 1)(module)


def _is_max_pool(module: Any) -> bool:
    if type(module) is not nn.MaxPool2d:
        return False
    return (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode) == (3, 2, 1, 1, False)


def _is_average_pool(module: Any) -> bool:
    if type(module) is not nn.AvgPool2d:
        return False
    numbers = (module.kernel_size, module.stride, module.padding, module.ceil_mode, module.divisor_override)
    return numbers == (2, 2, 0, False, None)
