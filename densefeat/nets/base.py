"""What DenseNet and DelugeNet share: stems, a sequence of stages with feature taps, a pooled linear head; timm's contract."""

import math
from collections import OrderedDict
from typing import Any

import torch
from timm.layers import BatchNormAct2d, create_classifier, get_device_dtype
from timm.models._features import feature_take_indices
from torch import nn


def _imagenet_stem(in_chans: int, width: int, **dd: Any) -> OrderedDict[str, nn.Module]:
    """7×7 convolution of stride 2, BN, ReLU, 3×3 max pool of stride 2."""
    return OrderedDict(
        conv0=nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False, **dd),
        norm0=BatchNormAct2d(width, **dd),
        pool0=nn.MaxPool2d(3, stride=2, padding=1),
    )


def _cifar_stem(in_chans: int, width: int, **dd: Any) -> OrderedDict[str, nn.Module]:
    """One 3×3 convolution at full resolution."""
    return OrderedDict(conv0=nn.Conv2d(in_chans, width, 3, padding=1, bias=False, **dd))


STEMS = {"imagenet": _imagenet_stem, "cifar": _cifar_stem}


def he_init(module: nn.Module) -> None:
    """He initialisation as in the papers' Torch code: normal, std sqrt(2 / (kernel area · out channels)), i.e. fan_out."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


class StagedNet(nn.Module):
    """A network that is ``features`` (an ``nn.Sequential``), global pooling and a linear ``classifier``.

    A subclass builds ``features`` and hands it to :meth:`_finish` with ``feature_info``, timm's list of
    ``dict(num_chs, reduction, module)``, every module a direct child of ``features``. ``block_taps`` names, for each block
    and for each kind of tap (``norm``, ``raw``), the module whose output :class:`densefeat.FeatureExtractor` reads.
    """

    def _finish(
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
        """``(N, in_chans, H, W)`` to the last stage's map ``(N, num_features, H', W')``."""
        return self.features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """``(N, num_features, H', W')`` to logits ``(N, num_classes)``, or to the pooled features that the classifier reads."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, in_chans, H, W)`` to logits ``(N, num_classes)``."""
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
        """The maps at the ``feature_info`` modules, in order, beside the final map.

        Args:
            x: ``(N, in_chans, H, W)``.
            indices: The last n if an int, these if a list, all if None.
            norm: Part of timm's signature; the last map is the final norm's output whatever it says.
            stop_early: Run no further than the last map asked for; the "final map" is then that of the stopping point.
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
        """Cut off what the maps at ``indices`` do not need; returns the indices kept.

        The head goes too where ``prune_head`` is set, or where the cut leaves it nothing to read.
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
        """The linear classifier, or ``nn.Identity`` where ``num_classes`` is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; the pooling (unless named), device, dtype and mode stay."""
        dd = get_device_dtype(self)
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, self.classifier = create_classifier(self.num_features, num_classes, pool_type=pool_type, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.classifier.train(self.training)
