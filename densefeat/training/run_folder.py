"""The folder of one run: recipe, metrics, curves, checkpoints, weights."""

import json
import math
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import nn

from densefeat.base import atomic_file, output_errors
from densefeat.errors import UsageError
from densefeat.images import Preprocessing
from densefeat.labels import Task
from densefeat.loading import CONFIG, OWN, WEIGHTS, HeadedNet
from densefeat.training.curves import draw_curves
from densefeat.training.recipe import MAY_CHANGE, Run
from densefeat.training.recipe_files import dump

RECIPE, METRICS, RESULTS = "recipe.yaml", "metrics.jsonl", "results.json"


class RunFolder:
    """Written by rank 0 alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.events: Any = None

    def check(self, recipe: Run) -> None:
        """UsageError, with the differences, where the folder is another run's, or holds something else."""
        file = self.path / RECIPE
        if file.exists():
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
            now = vars(recipe)
            differing = [key for key in now if key not in MAY_CHANGE and before.get(key) != now[key]]
            if differing:
                what = ", ".join(f"{key} {before.get(key)!r}, now {now[key]!r}" for key in differing)
                raise UsageError(f"{str(self.path)!r} holds a run of another recipe ({what}): name another --out")
        elif any(entry.name != ".lock" for entry in self.path.iterdir()):
            raise UsageError(f"{str(self.path)!r} is not empty and holds no run: name another --out")

    def begin(self, recipe: Run, step: int | None) -> None:
        """The recipe, now that data and network are known to be there; what was noted after ``step`` is forgotten.

        ``step``: of the checkpoint that the run goes on from; None: it begins.
        """
        with atomic_file(self.path / RECIPE) as beside:
            beside.write_text(dump(recipe), encoding="utf-8")
        self.resume(step)

    def resume(self, step: int | None) -> None:
        """Forget what was noted after ``step``, and an evaluation there, but before all steps: they will be noted again."""
        self.close()
        if step is not None:
            kept = [line for line in self.metrics() if line["step"] < max(1, step + (line["event"] == "train"))]
            with atomic_file(self.path / METRICS) as beside:
                beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        else:
            (self.path / METRICS).unlink(missing_ok=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # its package is an extra
            return
        self.events = SummaryWriter(str(self.path), purge_step=(step or 0) + 1)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines so far; one that was cut off by a crash is left out."""
        try:
            lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def note(self, event: str, step: int, **values: Any) -> None:
        """One line of metrics, and TensorBoard's scalars."""
        line = {"event": event, "step": step, **_finite(values)}
        with output_errors(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self.events.add_scalar(f"{event}/{name}", value, step)

    def results(self) -> dict[str, Any] | None:
        """Of a run that is complete."""
        file = self.path / RESULTS
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def write(self, name: str, content: object) -> None:
        """A JSON file beside the others."""
        with atomic_file(self.path / name) as beside:
            beside.write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")

    def draw(self) -> None:
        draw_curves(self.metrics(), self.path / "curves.png")

    def close(self) -> None:
        if self.events is not None:
            self.events.close()
            self.events = None

    def export(self, model: nn.Module, preprocessing: Preprocessing, classes: list[str], task: Task) -> None:
        """Weights as timm reads them, ``timm.create_model("local-dir:RUN")``; heads of ours: :func:`densefeat.load_run`."""
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
            save_file(tensors, beside, {"classes": json.dumps(classes)})  # one key: of several the order differs by chance


def _finite(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity: those as text."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
