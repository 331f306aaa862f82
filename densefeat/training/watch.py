"""A watch that finds the step at which a run diverged, without waiting for the device at every step."""

import math

import torch
from torch import nn

from densefeat.errors import DensefeatError

_MAX_FACTOR = 20  # of the chance level, or of the first step's loss where that is higher


class DivergedError(DensefeatError):
    """The error of a run whose loss is too high or not finite.

    ``report``: step, loss, gradient norms by block, and the keys of the batch.
    """

    def __init__(self, message: str, report: dict[str, object]) -> None:
        super().__init__(message)
        self.report = report


class Watch:
    """The loss and gradient norms of the steps since the last check, kept on the device.

    ``chance_level``: the loss of guessing. ``check_gradients``: whether an infinite gradient is an error; a gradient scaler
    causes some by itself.
    """

    def __init__(self, model: nn.Module, chance_level: float, check_gradients: bool) -> None:
        named = dict(model.named_parameters())  # including those that are frozen for now
        self.parameters = list(named.values())
        blocks = [".".join(name.split(".")[:-1][:2]) for name in named]
        self.blocks = list(dict.fromkeys(blocks))
        index = torch.tensor([self.blocks.index(block) for block in blocks])
        self.index = index.to(self.parameters[0].device)
        self.normal_loss = chance_level
        self.saw_first_step = False
        self.check_gradients = check_gradients
        self.records: list[tuple[int, torch.Tensor]] = []

    def gradient_norms(self) -> torch.Tensor:
        """Return the norm of the gradients of each block, ``(blocks,)``."""
        gradients = [p.grad if p.grad is not None else p.new_zeros(()) for p in self.parameters]
        squares = torch.stack(torch._foreach_norm(gradients)).square()
        return squares.new_zeros(len(self.blocks)).index_add_(0, self.index, squares).sqrt()

    def record(self, step: int, loss: torch.Tensor) -> None:
        """Call this after the backward pass of each step. ``loss``: ``()``, this rank's mean loss."""
        norms = self.gradient_norms()
        self.records.append((step, torch.cat([loss.detach().to(norms.dtype).view(1), norms])))

    def find_divergence(self) -> dict[str, object] | None:
        """Report the first step since the last call that diverged on this rank, if any."""
        if not self.records:
            return None
        steps, values = [step for step, _ in self.records], torch.stack([value for _, value in self.records]).cpu()
        self.records.clear()
        if not self.saw_first_step:
            self.saw_first_step, self.normal_loss = True, max(self.normal_loss, float(values[0, 0]))
        for step, (loss, *norms) in zip(steps, values.tolist(), strict=True):
            finite = math.isfinite(loss) and (not self.check_gradients or all(map(math.isfinite, norms)))
            if not finite or loss > _MAX_FACTOR * self.normal_loss:
                return {"step": step, "loss": loss, "gradient_norms": dict(zip(self.blocks, norms, strict=True))}
        return None


def format_divergence(report: dict[str, object]) -> str:
    """Format a report as one line."""
    norms = report["gradient_norms"]
    assert isinstance(norms, dict)
    blocks = ", ".join(f"{name} {norm:.3g}" for name, norm in norms.items())
    return f"diverged at step {report['step']}: loss {report['loss']:.4g}; gradient norms: {blocks}"
