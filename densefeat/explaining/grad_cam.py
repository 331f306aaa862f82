"""Grad-CAM: where a network's last map matters for a class, by gradients; for heads whose scores are no sums over positions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from densefeat.errors import UsageError
from densefeat.explaining.evidence import SCORES, Explainer
from densefeat.features import list_taps
from densefeat.heads import HeadedNet

GRAD_CAM = "grad_cam"  # the column


class GradCam(Explainer):
    """Grad-CAM of a network's last block. ``named``: class numbers, see :class:`Explainer`.

    Each channel of the map is weighted by the gradient of the score, averaged over positions; the channels are added, and
    negative values become 0. This is an approximation: the maps do not add up to scores.

    Source: Selvaraju et al., "Grad-CAM" (arXiv 1610.02391), section 3. Raises UsageError for a network without maps.
    """

    def __init__(self, network: Any, named: Sequence[int]) -> None:
        super().__init__(named, [GRAD_CAM], None)
        self.network = network.requires_grad_(False)
        backbone: Any = network.backbone if isinstance(network, HeadedNet) else network
        last = list_taps(backbone, "norm")[-1].module
        self.last = last if backbone is network else f"backbone.{last}"
        self.channels = backbone.feature_info[-1]["num_chs"]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        kept: list[torch.Tensor] = []

        def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
            kept.append(output.detach().requires_grad_())
            return kept[-1].clone()  # later layers may write into it

        handle = self.network.get_submodule(self.last).register_forward_hook(keep)
        try:
            with torch.enable_grad():  # from the last map on: nothing before it asks for gradients
                scores = self.network(x)
                wanted = scores.gather(1, self.choose_classes(scores.detach())).sum(0).unbind()
        finally:
            handle.remove()
        (maps,) = kept
        if maps.ndim != 4 or maps.shape[1] != self.channels:
            shape = tuple(maps.shape)
            raise UsageError(
                f"{self.last} of {type(self.network).__name__} is no map (N, {self.channels}, h, w): its shape is {shape}"
            )
        cams = [_weigh(maps, *torch.autograd.grad(score, maps, retain_graph=True)) for score in wanted]
        return {SCORES: scores.detach(), GRAD_CAM: torch.stack(cams, dim=1)}


def _weigh(maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return (maps.detach() * gradient.mean((2, 3), keepdim=True)).sum(1).relu()
