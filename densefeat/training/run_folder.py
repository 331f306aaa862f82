"""The folder of a run: recipe, metrics, curves, checkpoints, weights."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from densefeat.base import atomic_file, output_errors
from densefeat.errors import UsageError
from densefeat.heads import HeadedNet
from densefeat.images import Preprocessing
from densefeat.labels import Task
from densefeat.loading import CONFIG, OWN, RECIPE, RESULTS, WEIGHTS
from densefeat.training.recipe import MAY_CHANGE, Run
from densefeat.training.recipe_files import dump_recipe

METRICS = "metrics.jsonl"


class RunFolder:
    """The folder of a run. Only rank 0 writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.events: Any = None

    def check(self, recipe: Run) -> None:
        """Raise UsageError, with the differences, if the folder holds another run, or anything else."""
        file = self.path / RECIPE
        if file.exists():
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
            now = vars(recipe)
            differences = [key for key in now if key not in MAY_CHANGE and before.get(key) != now[key]]
            if differences:
                what = ", ".join(f"{key} {before.get(key)!r}, now {now[key]!r}" for key in differences)
                raise UsageError(f"{str(self.path)!r} holds a run of another recipe ({what}): name another --out")
        elif any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise UsageError(f"{str(self.path)!r} is not empty and holds no run: name another --out")

    def open(self, recipe: Run, step: int | None) -> None:
        """Write the recipe and open the logs. Call this only after data and network are known to exist.

        ``step``: of the checkpoint that the run resumes from; None: the run starts.
        """
        with atomic_file(self.path / RECIPE) as beside:
            beside.write_text(dump_recipe(recipe), encoding="utf-8")
        self.rewind(step)

    def rewind(self, step: int | None) -> None:
        """Remove the metrics after ``step``, and those of an evaluation at ``step`` unless it is 0: they will come again."""
        self.close()
        if step is not None:
            kept = [line for line in self.metrics() if line["step"] < max(1, step + (line["event"] == "train"))]
            with atomic_file(self.path / METRICS) as beside:
                beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        else:
            (self.path / METRICS).unlink(missing_ok=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # an optional package
            return
        self.events = SummaryWriter(str(self.path), purge_step=(step or 0) + 1)

    def metrics(self) -> list[dict[str, Any]]:
        """Read all lines of metrics, except one that a crash cut off."""
        try:
            lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        metrics = []
        for line in lines:
            with suppress(ValueError):
                metrics.append(json.loads(line))
        return metrics

    def log(self, event: str, step: int, **values: Any) -> None:
        """Append a line of metrics, and TensorBoard's scalars."""
        line = {"event": event, "step": step, **_finite(values)}
        with output_errors(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.events.add_scalar(f"{event}/{name}", value, step)

    def results(self) -> dict[str, Any] | None:
        """Read the results; None if the run is not complete."""
        file = self.path / RESULTS
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def write(self, name: str, content: object) -> None:
        """Write a JSON file."""
        with atomic_file(self.path / name) as beside:
            beside.write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")

    def draw_curves(self) -> None:
        """Draw the metrics as ``curves.png``, if matplotlib is installed."""
        _draw_curves(self.metrics(), self.path / "curves.png")

    def close(self) -> None:
        if self.events is not None:
            self.events.close()
            self.events = None

    def export(self, model: nn.Module, preprocessing: Preprocessing, classes: list[str], task: Task) -> None:
        """Write the weights and ``config.json``.

        timm opens them with ``timm.create_model("local-dir:RUN")``, and :func:`densefeat.load_run` also those with our heads.
        """
        facts = preprocessing.to_json()
        size = facts.pop("size")
        config = facts | {"input_size": (3, size, size)}
        source = {"file": None, "url": None, "hf_hub_id": None, "tag": None, "license": None}
        own: dict[str, Any] = {"task": task, "head": "linear"}
        backbone = model
        if isinstance(model, HeadedNet):
            backbone, own = model.backbone, own | {"head": model.kind, "head_width": model.width, "num_classes": len(classes)}
        backbone.pretrained_cfg = dict(model.pretrained_cfg) | source | config  # type: ignore[assignment, arg-type]
        with atomic_file(self.path / CONFIG) as beside:
            save_config_for_hf(backbone, str(beside), {"label_names": classes, OWN: own})
        with atomic_file(self.path / WEIGHTS) as beside:
            tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
            save_file(tensors, beside, {"classes": json.dumps(classes)})  # safetensors writes several keys in random order


def _finite(value: Any) -> Any:
    """Convert NaN and infinity, which JSON does not have, to text."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _draw_curves(metrics: list[dict[str, Any]], path: Path) -> bool:
    """Draw the lines of metrics.jsonl as a PNG; return False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure

        from densefeat.base import save_picture
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, name, title in zip(axes, ("loss", "top1", "lr"), ("loss", "top-1, %", "learning rate"), strict=True):
        for event in ("train", "val"):
            lines = [line for line in metrics if line["event"] == event and name in line]
            if lines:
                axis.plot(
                    [line["epoch"] for line in lines],
                    [line[name] for line in lines],
                    label=event,
                    linewidth=1,
                    marker="." if event == "val" else "",
                )
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    save_picture(figure, path)
    return True
