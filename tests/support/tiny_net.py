"""A network as small as ours can be, registered with timm like them, for tests of training in which the size is not the point."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from densefeat.nets.dense_net import DenseNet
from support.helpers import randomize_statistics

TINY = "tiny_densenet"
STRUCTURE = dict(growth_rate=6, block_config=(2, 2, 2), stem_type="cifar")

default_cfgs = generate_default_cfgs(
    {
        TINY: dict(
            num_classes=10, input_size=(3, 32, 32), pool_size=(8, 8), crop_pct=1.0, interpolation="bicubic",
            mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26), first_conv="features.conv0", classifier="classifier",
        )
    }
)  # fmt: skip


@register_model
def tiny_densenet(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    """DenseNet-BC of three blocks with two layers each."""
    feature_cfg = dict(flatten_sequential=True, out_indices=(0, 1, 2, 3))
    return build_model_with_cfg(DenseNet, TINY, pretrained, feature_cfg=feature_cfg, **STRUCTURE | kwargs)


def tiny_state() -> dict[str, torch.Tensor]:
    """Weights that stand for published ones, the same at every call."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return randomize_statistics(timm.create_model(TINY)).state_dict()


def write_tiny_weights(folder: Path) -> Path:
    path = folder / "tiny.safetensors"
    if not path.exists():
        save_file({name: value.contiguous() for name, value in tiny_state().items()}, path)
    return path
