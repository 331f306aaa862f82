"""The common base of DenseNet and DelugeNet: stems, stages with taps, a pooled linear head, and timm's contract."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import create_classifier, get_device_dtype
from timm.models._features import feature_take_indices
from torch import nn


def _make_imagenet_stem(in_chans: int, width: int, **dd: Any) -> OrderedDict[str, nn.Module]:
    """Make a 7×7 convolution of stride 2, BN, ReLU, 3×3 max pool of stride 2."""
    return OrderedDict(
        conv0=nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False, **dd),
        norm0=nn.BatchNorm2d(width, **dd),
        act0=nn.ReLU(),
        pool0=nn.MaxPool2d(3, stride=2, padding=1),
    )


def _make_cifar_stem(in_chans: int, width: int, **dd: Any) -> OrderedDict[str, nn.Module]:
    """Make a 3×3 convolution at full resolution."""
    return OrderedDict(conv0=nn.Conv2d(in_chans, width, 3, padding=1, bias=False, **dd))


@dataclass(frozen=True)
class Stem:
    """A kind of stem: how its layers are made, the layer that is timm's first feature, and the reductions there and after."""

    make: Callable[..., OrderedDict[str, nn.Module]]
    feature: str
    feature_reduction: int
    reduction: int


STEMS = {"imagenet": Stem(_make_imagenet_stem, "act0", 2, 4), "cifar": Stem(_make_cifar_stem, "conv0", 1, 1)}


def he_init(module: nn.Module) -> None:
    """Initialise as the papers' Torch code does: normal, std sqrt(2 / (kernel area · out channels)), which is fan_out."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


class StagedNet(nn.Module):
    """A network of ``features`` (an ``nn.Sequential``), global pooling and a linear ``classifier``.

    A subclass builds ``features`` and passes it to :meth:`_assemble` with ``feature_info``, timm's list of
    ``dict(num_chs, reduction, module)``, whose modules are direct children of ``features``, and with ``block_taps``: for each
    kind of tap (``norm``, ``raw``) and each block the module whose output :class:`densefeat.FeatureExtractor` reads.

    Norms and ReLUs are modules of torch's own types, each by itself, so that a program may replace the one (by a synchronised
    or frozen norm, say) and the other stays. No ReLU works in place: what a module returned is never overwritten, and hooks may
    keep it.
    """

    def _assemble(
        self,
        features: nn.Sequential,
        feature_info: list[dict[str, Any]],
        block_taps: dict[str, list[str]],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        **dd: Any,
    ) -> None:
        self.features = features
        self.feature_info = feature_info
        self.block_taps = block_taps
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features: int = feature_info[-1]["num_chs"]
        self.global_pool, self.classifier = create_classifier(self.num_features, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.head_drop = nn.Dropout(drop_rate)
        names = [name for name, _ in features.named_children()]
        self.feature_ends = [names.index(info["module"].removeprefix("features.")) for info in feature_info]
        self.apply(he_init)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_chans, H, W)`` to the last stage's map ``(N, num_features, H', W')``."""
        return self.features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Map ``(N, num_features, H', W')`` to logits ``(N, num_classes)`` or, with ``pre_logits``, the classifier's input."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_chans, H, W)`` to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,  # noqa: ARG002
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the final map and the maps at the modules of ``feature_info``, in order.

        Args:
            x: ``(N, in_chans, H, W)``.
            indices: An int n for the last n, a list for these, None for all.
            norm: Part of timm's signature, without effect: the last map is always the final norm's output.
            stop_early: Stop at the last requested map, which is then the "final map".
            output_fmt: ``"NCHW"``, the only one.
            intermediates_only: Return the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt '{output_fmt}': these networks give 'NCHW' maps only")
        take, last = feature_take_indices(len(self.feature_ends), indices)
        ends = [self.feature_ends[i] for i in take]
        if torch.jit.is_scripting() or not stop_early:  # noqa: SIM108  (TorchScript cannot slice modules)
            stages = self.features
        else:
            stages = self.features[: self.feature_ends[last] + 1]
        intermediates = []
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in ends:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,  # noqa: ARG002
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages that the maps at ``indices`` do not need; return the indices kept.

        The head is removed, too, where ``prune_head`` is set, and where the last stage is removed.
        """
        take, last = feature_take_indices(len(self.feature_ends), indices)
        cut = last < len(self.feature_ends) - 1
        self.features = self.features[: self.feature_ends[last] + 1]
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the linear classifier, or ``nn.Identity`` where ``num_classes`` is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; pooling (unless ``global_pool`` is set), device, dtype and mode stay."""
        dd = get_device_dtype(self)
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.classifier = create_classifier(self.num_features, num_classes, pool_type=pool_type, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.classifier.train(self.training)
