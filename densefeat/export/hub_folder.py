"""A folder as timm's repositories on the Hugging Face hub are: configuration, weights, model card."""

from pathlib import Path
from typing import Any

import timm
from timm.models._hub import save_config_for_hf

from densefeat.errors import UsageError
from densefeat.export.card import card
from densefeat.export.check import Run
from densefeat.export.source import Source
from densefeat.export.weights_file import write as write_weights
from densefeat.images import Preprocessing
from densefeat.loading import CONFIG, WEIGHTS


def _write(source: Source, preprocessing: Preprocessing, folder: Path, metadata: dict[str, Any]) -> None:
    """``config.json``, whose entry ``densefeat`` is ``metadata``, ``model.safetensors`` and ``README.md``."""
    facts = preprocessing.to_json()
    size = facts.pop("size")
    config: dict[str, Any] = {"densefeat": metadata}
    if names := source.classes:
        config["label_names"] = names
    save_config_for_hf(source.model, str(folder / CONFIG), config, data_config=facts | {"input_size": (3, size, size)})
    write_weights(source.model, folder / WEIGHTS, {"format": "pt"})  # transformers asks for that entry
    (folder / "README.md").write_text(card(source, preprocessing, metadata), encoding="utf-8")


def _open_folder(folder: Path) -> tuple[str, Run]:
    """The network that timm makes of the folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return f"timm {timm.__version__}", lambda images: [model(images)]


def _check_made_by_timm(source: Source) -> None:
    """Raise UsageError for a network that timm could not make again."""
    if not source.config.get("architecture") or not hasattr(source.model, "num_features"):
        raise UsageError(f"{source.name}: a folder for the hub is of a network that timm makes by name: choose safetensors")
