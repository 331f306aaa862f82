"""The places in a network where features are read: their names, and the modules that hooks are registered on."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import nn

from densefeat.errors import UsageError
from densefeat.nets import StagedNet
from densefeat.store import block_name

_TAPS = ("norm", "raw")


@dataclass(frozen=True)
class Tap:
    """The name of a feature, and of the module whose output it is."""

    name: str
    module: str


def find_taps(model: nn.Module, blocks: str | int | Sequence[int], tap: str) -> list[Tap]:
    """Return the taps of the requested blocks, in the network's order.

    Args:
        model: A network of ours (``block1``, ``block2``, …), or any with timm's ``feature_info`` (its modules' own names).
        blocks: ``"all"``, a number from 1, several, or them as text (``"2,4"``).
        tap: ``"norm"`` or ``"raw"``, for networks of ours; other networks have one tap a block.

    Raises:
        UsageError: No such block or tap, or a model without ``feature_info``.
    """
    available = list_taps(model, tap)
    numbers = _parse_block_numbers(blocks, len(available))
    return [available[number - 1] for number in numbers]


def list_taps(model: nn.Module, tap: str) -> list[Tap]:
    """Return the taps of all blocks, in the network's order. Arguments and errors as for :func:`find_taps`."""
    if tap not in _TAPS:
        raise UsageError(f"tap {tap!r}: choose 'norm' (what the next stage reads) or 'raw' (the block's own output)")
    if isinstance(model, StagedNet):
        taps = [Tap(block_name(i), module) for i, module in enumerate(model.block_taps[tap], 1)]
    else:
        taps = [Tap(module, module) for module in _list_feature_info_modules(model)]
    present = {name for name, _ in model.named_modules()}
    if absent := [entry.module for entry in taps if entry.module not in present]:
        raise UsageError(
            f"{type(model).__name__} has no module {absent[0]!r}, which features are read from; pass the whole model,"
            " not a pruned one or one made with features_only"
        )
    return taps


def _list_feature_info_modules(model: nn.Module) -> list[str]:
    info: Any = getattr(model, "feature_info", None)
    if info is None:
        raise UsageError(
            f"{type(model).__name__} has no feature_info: pass a timm model, or set a list of dict(num_chs, reduction, module)"
        )
    entries: Any = info.get_dicts() if hasattr(info, "get_dicts") else info
    return [entry["module"] for entry in entries]


def _parse_block_numbers(blocks: str | int | Sequence[int], count: int) -> list[int]:
    """Parse the requested block numbers: from 1, ascending, each once."""
    if isinstance(blocks, str) and blocks == "all":
        return list(range(1, count + 1))
    requested: Any = blocks.split(",") if isinstance(blocks, str) else [blocks] if isinstance(blocks, Integral) else blocks
    try:
        numbers = {int(str(number)) for number in requested}
    except (TypeError, ValueError):
        numbers = set()
    if not numbers or not numbers <= set(range(1, count + 1)):
        raise UsageError(f"blocks {blocks!r}: this network has 1 to {count}; give 'all' or some of them, as in 2,4")
    return sorted(numbers)
