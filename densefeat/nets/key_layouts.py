"""The names under which checkpoints keep a network's tensors: other programs' names, and prefixes that wrappers put before all.

Another program's layout is a row in :data:`_RENAMES`.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

# Patterns in the names of other programs, and what the network has in their place; a key that the network has is its own name.
_RENAMES = tuple(
    (re.compile(rf"(?<![^.]){pattern}"), replacement)
    for pattern, replacement in (
        (r"(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.", ""),  # torch's wrappers of parts
        (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),  # torchvision's first DenseNets
        (r"(denselayer\d+\.)layers\.", r"\1"),  # MONAI's DenseNets
        (r"class_layers\.out\.", "classifier."),  # MONAI's DenseNets
        (r"features_(\w+\.)", r"features.\1"),  # timm's features_only, which segmentation_models_pytorch wraps
    )
)
# Names under which training programs keep averaged weights, in containers and prefixes; they come first, as in timm.
_AVERAGED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "ema_state", "ema_weights", "ema_params"),
    *("model_ema_state_dict", "ema_model_state_dict", "params_ema", "net_ema", "ema_net"),
    *("average_model", "averaged_model", "swa_model", "swa_state_dict"),
)


class AmbiguousKeys(Exception):
    """Keys that hold the network several times; the message names the prefixes."""


@dataclass(frozen=True)
class NamedKeys:
    """The network's name for each key of a checkpoint, and the prefix that was taken off. Averaged weights stand alone.

    Keys that are nothing of the network's keep their names, and so do several keys of which each would be the same tensor.
    """

    names: Mapping[str, str]
    prefix: str


def name_keys(keys: Collection[str], own: Collection[str], classifiers: tuple[str, ...]) -> NamedKeys:
    """Find the prefix under which a checkpoint's keys are all of the network's, and name them as the network does.

    Args:
        keys: The checkpoint's.
        own: The network's.
        classifiers: The prefixes of the classifier's names, such as ``"classifier."``. A checkpoint may lack the classifier,
            and may have it as the one layer with weights in a Sequential, ``classifier.1.weight``.

    Raises:
        AmbiguousKeys: The network is there under several prefixes, as teacher and student are.
    """
    backbone = {name for name in own if not name.endswith("num_batches_tracked") and not name.startswith(classifiers)}
    readings = {prefix: _name_after(prefix, keys, own, classifiers) for prefix in _list_prefixes(keys, own, backbone)}
    complete = {prefix: names for prefix, names in readings.items() if backbone <= set(names.values())}
    # Readings that take the same tensors for the backbone are one: the prefix that names the most, the longest of such.
    fitting = {
        frozenset((key, name) for key, name in complete[prefix].items() if name in backbone): prefix
        for prefix in sorted(complete, key=lambda prefix: (len(set(own) & set(complete[prefix].values())), len(prefix)))
    }.values()
    averaged = [prefix for prefix in fitting if rank_averaged(prefix.split(".")) is not None]
    if len(averaged or fitting) > 1:
        ways = " and ".join(repr(prefix) for prefix in sorted(averaged or fitting))
        raise AmbiguousKeys(f"the network's tensors are there more than once, with the prefixes {ways}: save one of them alone")
    if averaged:
        (prefix,) = averaged
        return NamedKeys({key: name for key, name in readings[prefix].items() if key.startswith(prefix)}, prefix)
    best = max(fitting or readings, key=lambda prefix: len(backbone & set(readings[prefix].values())))
    return NamedKeys(readings[best], best)


def rank_averaged(names: Sequence[str]) -> tuple[int, int] | None:
    """Rank nested names, the outermost first, by the first that stands for averaged weights; None where none does.

    Returns its place among the names and in the order in which programs' names are preferred: the smallest rank comes first.
    """
    plain = [name.lstrip("_").lower() for name in names]
    return min(((place, _AVERAGED.index(name)) for place, name in enumerate(plain) if name in _AVERAGED), default=None)


def _list_prefixes(keys: Collection[str], own: Collection[str], backbone: Collection[str]) -> list[str]:
    """List the prefixes to try: none, what all keys begin with, and what stands before the network's first tensor."""
    first = next((name for name in own if name in backbone), "")
    prefixes = {"": None, _find_common_prefix(keys): None}
    for key in keys:
        prefixes |= {name.removesuffix(first): None for name in (key, _rename(key)) if name.endswith(f".{first}")}
    return list(prefixes)


def _find_common_prefix(keys: Collection[str]) -> str:
    """Find the parts that all keys begin with, each with its dot."""
    prefix = ""
    for parts in zip(*(key.split(".")[:-1] for key in keys), strict=False):
        if len(set(parts)) > 1:
            break
        prefix += f"{parts[0]}."
    return prefix


def _name_after(prefix: str, keys: Collection[str], own: Collection[str], classifiers: tuple[str, ...]) -> dict[str, str]:
    """Name the keys that begin with a prefix as the network does; the others keep their names."""
    plain = {key: key.removeprefix(prefix) for key in keys}
    names = {key: name if name in own else _name_classifier(_rename(name), classifiers) for key, name in plain.items()}
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else plain[key] for key, name in names.items()}


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def _name_classifier(name: str, classifiers: tuple[str, ...]) -> str:
    """Take the number of a layer of a Sequential off the classifier's name."""
    for classifier in classifiers:
        if match := re.fullmatch(rf"{re.escape(classifier)}\d+\.(\w+)", name):
            return classifier + match[1]
    return name
