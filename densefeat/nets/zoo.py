"""All networks by name: one row of numbers each. Their weights by tag. Their registration with timm."""

from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from densefeat.nets.base import StagedNet
from densefeat.nets.deluge_net import DelugeNet
from densefeat.nets.dense_net import DenseNet
from densefeat.nets.weights import checkpoint_filter_fn

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_SHA256 = {  # by file name
    "densenet_bc100_k12.tin200.safetensors": "0d1931135fb995714d5a28a29ef62cbda21d000a0a07b4a481ff4757ab184ac0",
}

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

_PLAIN = dict(stem_type="cifar", bottleneck=False, compression=1.0)
_BC = dict(stem_type="cifar")

# name: class and structure, with the numbers of the papers' tables
VARIANTS: dict[str, tuple[type[StagedNet], dict[str, Any]]] = {
    "densefeat_densenet121": (DenseNet, dict(growth_rate=32, block_config=(6, 12, 24, 16))),
    "densefeat_densenet161": (DenseNet, dict(growth_rate=48, block_config=(6, 12, 36, 24))),
    "densefeat_densenet169": (DenseNet, dict(growth_rate=32, block_config=(6, 12, 32, 32))),
    "densefeat_densenet201": (DenseNet, dict(growth_rate=32, block_config=(6, 12, 48, 32))),
    "densefeat_densenet264": (DenseNet, dict(growth_rate=32, block_config=(6, 12, 64, 48))),
    "densefeat_densenet40_k12": (DenseNet, dict(growth_rate=12, block_config=(12, 12, 12), **_PLAIN)),
    "densefeat_densenet100_k12": (DenseNet, dict(growth_rate=12, block_config=(32, 32, 32), **_PLAIN)),
    "densefeat_densenet100_k24": (DenseNet, dict(growth_rate=24, block_config=(32, 32, 32), **_PLAIN)),
    "densefeat_densenet_bc100_k12": (DenseNet, dict(growth_rate=12, block_config=(16, 16, 16), **_BC)),
    "densefeat_densenet_bc250_k24": (DenseNet, dict(growth_rate=24, block_config=(41, 41, 41), **_BC)),
    "densefeat_densenet_bc190_k40": (DenseNet, dict(growth_rate=40, block_config=(31, 31, 31), **_BC)),
    "densefeat_delugenet92": (DelugeNet, dict(block_config=(7, 7, 8, 8))),
    "densefeat_delugenet104": (DelugeNet, dict(block_config=(7, 8, 9, 10))),
    "densefeat_delugenet122": (DelugeNet, dict(block_config=(7, 9, 11, 13))),
    "densefeat_delugenet146": (DelugeNet, dict(block_widths=(32, 64, 128), block_config=(8, 16, 24), stem_type="cifar")),
    "densefeat_delugenet218": (DelugeNet, dict(block_widths=(32, 64, 128), block_config=(12, 24, 36), stem_type="cifar")),
    "densefeat_wide_delugenet146": (
        DelugeNet,
        dict(block_widths=(56, 112, 224), block_config=(8, 16, 24), stem_type="cifar"),
    ),
}


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return dict(
        num_classes=1000, input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD, first_conv="features.conv0", classifier="classifier",
    ) | kwargs  # fmt: skip


def _cifar_cfg(**kwargs: Any) -> dict[str, Any]:
    cifar = dict(num_classes=10, input_size=(3, 32, 32), pool_size=(8, 8), crop_pct=1.0, mean=CIFAR_MEAN, std=CIFAR_STD)
    return _cfg(**(cifar | kwargs))


def _timm_cfg(hf_hub_id: str, **kwargs: Any) -> dict[str, Any]:
    return _cfg(hf_hub_id=hf_hub_id, license="apache-2.0", **kwargs)


# name.tag: published weights with their preprocessing; a name without a tag has no published weights
default_cfgs = generate_default_cfgs(
    {
        "densefeat_densenet121.ra_in1k": _timm_cfg(
            "timm/densenet121.ra_in1k", test_input_size=(3, 288, 288), test_crop_pct=0.95
        ),
        "densefeat_densenet121.tv_in1k": _timm_cfg("timm/densenet121.tv_in1k"),
        "densefeat_densenet161.tv_in1k": _timm_cfg("timm/densenet161.tv_in1k"),
        "densefeat_densenet169.tv_in1k": _timm_cfg("timm/densenet169.tv_in1k"),
        "densefeat_densenet201.tv_in1k": _timm_cfg("timm/densenet201.tv_in1k"),
        "densefeat_densenet_bc100_k12.tin200": _cifar_cfg(
            file=str(BUNDLED / "densenet_bc100_k12.tin200.safetensors"),
            num_classes=200,
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            license="apache-2.0",
        ),
        "densefeat_densenet264": _cfg(),
        "densefeat_densenet40_k12": _cifar_cfg(),
        "densefeat_densenet100_k12": _cifar_cfg(),
        "densefeat_densenet100_k24": _cifar_cfg(),
        "densefeat_densenet_bc250_k24": _cifar_cfg(),
        "densefeat_densenet_bc190_k40": _cifar_cfg(),
        "densefeat_delugenet92": _cfg(),
        "densefeat_delugenet104": _cfg(),
        "densefeat_delugenet122": _cfg(),
        "densefeat_delugenet146": _cifar_cfg(),
        "densefeat_delugenet218": _cifar_cfg(),
        "densefeat_wide_delugenet146": _cifar_cfg(),
    }
)


def _register(name: str, cls: type[StagedNet], structure: dict[str, Any]) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> StagedNet:
        model_args = structure | kwargs
        return build_model_with_cfg(
            cls,
            name,
            pretrained,
            feature_cfg=dict(flatten_sequential=True, out_indices=tuple(range(len(model_args["block_config"]) + 1))),
            pretrained_filter_fn=checkpoint_filter_fn,
            **model_args,
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{cls.__name__} with {structure}; keyword arguments go to {cls.__name__}."
    register_model(create)


for _name, (_cls, _structure) in VARIANTS.items():
    _register(_name, _cls, _structure)
