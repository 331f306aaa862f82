"""Notices divergence at the step where it happens, without waiting for the device at every step."""

import math

import torch
from torch import nn

from densefeat.errors import DensefeatError

_TOO_HIGH = 20  # times the loss of guessing, or of the first step where that is higher


class DivergedError(DensefeatError):
    """``report``: step, loss, gradient norms by block, and the batch's keys once they are looked up."""

    def __init__(self, message: str, report: dict[str, object]) -> None:
        super().__init__(message)
        self.report = report


class Watch:
    """Loss and gradient norms of the steps since it last looked, kept on the device.

    ``guess``: the loss of guessing. ``gradients``: whether infinite ones are a fault: a gradient scaler brings them about by
    itself.
    """

    def __init__(self, model: nn.Module, guess: float, gradients: bool) -> None:
        named = dict(model.named_parameters())  # also those that do not learn yet
        self.parameters = list(named.values())
        blocks = [".".join(name.split(".")[:-1][:2]) for name in named]
        self.blocks = list(dict.fromkeys(blocks))
        index = torch.tensor([self.blocks.index(block) for block in blocks])
        self.index = index.to(self.parameters[0].device)
        self.usual = guess
        self.begun = False
        self.gradients = gradients
        self.seen: list[tuple[int, torch.Tensor]] = []

    def norms(self) -> torch.Tensor:
        """Of the gradients of each block, ``(blocks,)``."""
        gradients = [p.grad if p.grad is not None else p.new_zeros(()) for p in self.parameters]
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        return squares.new_zeros(len(self.blocks)).index_add_(0, self.index, squares).sqrt()

    def note(self, step: int, loss: torch.Tensor) -> None:
        """After the backward pass of a step. ``loss``: ``()``, of this rank's share, as a mean."""
        norms = self.norms()
        self.seen.append((step, torch.cat([loss.detach().to(norms.dtype).view(1), norms])))

    def look(self) -> dict[str, object] | None:
        """The first step that went wrong since the last look, if any: what is known of it on this rank."""
        if not self.seen:
            return None
        steps, values = [step for step, _ in self.seen], torch.stack([value for _, value in self.seen]).cpu()
        self.seen.clear()
        if not self.begun:
            self.begun, self.usual = True, max(self.usual, float(values[0, 0]))
        for step, (loss, *norms) in zip(steps, values.tolist(), strict=True):
            finite = math.isfinite(loss) and (not self.gradients or all(map(math.isfinite, norms)))
            if not finite or loss > _TOO_HIGH * self.usual:
                return {"step": step, "loss": loss, "gradient_norms": dict(zip(self.blocks, norms, strict=True))}
        return None


def describe(report: dict[str, object]) -> str:
    """One line for people."""
    norms = report["gradient_norms"]
    assert isinstance(norms, dict)
    blocks = ", ".join(f"{name} {norm:.3g}" for name, norm in norms.items())
    return f"diverged at step {report['step']}: loss {report['loss']:.4g}; gradient norms: {blocks}"
