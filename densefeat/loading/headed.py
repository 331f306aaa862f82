"""A network with a head of ours in place of its own classifier, and trained runs read back."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from densefeat.errors import UsageError, WeightsError
from densefeat.heads import KINDS, make_head
from densefeat.loading.run_files import load_whole, make_network, read_run, read_tensors
from densefeat.nets import check_fit


class HeadedNet(nn.Module):
    """``backbone``: any timm model that gives its blocks' maps; ``head``: as :func:`densefeat.heads.kinds.make_head` makes it.

    ``(N, C, H, W)`` to logits ``(N, num_classes)``. UsageError for a backbone without ``forward_intermediates``.
    """

    def __init__(self, backbone: nn.Module, kind: str, width: int, num_classes: int) -> None:
        super().__init__()
        if not hasattr(backbone, "forward_intermediates"):
            raise UsageError(f"head {kind!r}: {type(backbone).__name__} does not give its blocks' maps: take the linear head")
        self.backbone = backbone
        self.head = make_head(kind, backbone, num_classes, width)
        self.kind, self.width, self.num_classes = kind, width, num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return self.backbone.pretrained_cfg  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone.forward_intermediates(x, intermediates_only=True))  # type: ignore[operator]


def load_run(folder: str | Path, weights: str | Path | None = None) -> nn.Module:
    """The network that a run of ``densefeat finetune`` or ``densefeat train`` ended with, head and all, in eval mode.

    ``(N, 3, H, W)`` to logits; ``pretrained_cfg`` has its preprocessing, and its classes as ``label_names``. ``weights``: a
    file instead of the run's own. Raises UsageError where there is no run, WeightsError where its files do not fit.
    """
    run = read_run(folder)
    file = run.weights if weights is None else Path(weights)
    model: nn.Module
    if run.head == "linear":
        model = make_network(run, run.num_classes)
        load_whole(model, file)
    else:
        if run.head not in KINDS:
            raise WeightsError(f"run {str(folder)!r}: head {run.head!r} is none of {', '.join(KINDS)}: update densefeat")
        model = HeadedNet(make_network(run, 0), run.head, run.head_width, run.num_classes)
        tensors = read_tensors(file)
        check_fit(tensors, model, file)
        model.load_state_dict(tensors, strict=False)  # checked above; only num_batches_tracked may be missing
    if run.classes is not None:
        model.pretrained_cfg["label_names"] = run.classes  # type: ignore[index, operator, assignment]
    return model.eval()
