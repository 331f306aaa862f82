"""The folder of a run: recipe, metrics, curves, checkpoints, weights."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from densefeat.base import (
    add_checksum,
    atomic_file,
    check_checksum,
    check_tensors,
    describe_error,
    output_errors,
    parse_json,
    read_yaml,
    refuse_links,
    refuse_stranger,
    save_tensors,
    set_aside,
)
from densefeat.errors import UsageError, WeightsError
from densefeat.heads import HeadedNet
from densefeat.images import Preprocessing
from densefeat.labels import Task
from densefeat.loading import CONFIG, OWN, RECIPE, RESULTS, WEIGHTS, write_config
from densefeat.training.events import EventFile
from densefeat.training.recipe import MAY_CHANGE, Run
from densefeat.training.recipe_files import dump_recipe, dump_values

METRICS, CURVES, DIVERGENCE = "metrics.jsonl", "curves.png", "divergence.json"


class RunFolder:
    """The folder of a run. Only rank 0 writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.events: EventFile | None = None

    def check(self, recipe: Run) -> None:
        """Raise UsageError, with the differences, if the folder holds another run, or anything else.

        A recipe that the user wrote makes no run, nor is a file or folder of the run's taken for its own behind a link.
        """
        own = (RECIPE, METRICS, CONFIG, WEIGHTS, RESULTS, CURVES, DIVERGENCE, self.checkpoints.name)
        refuse_links([self.path / name for name in own])
        file = self.path / RECIPE
        if file.exists():
            before = _read_mapping(file)
            refuse_stranger(file, lambda path: path.read_text(encoding="utf-8") == dump_values(before))
            now = vars(recipe)
            differences = [key for key in now if key not in MAY_CHANGE and before.get(key) != now[key]]
            if differences:
                what = ", ".join(f"{key} {before.get(key)!r}, now {now[key]!r}" for key in differences)
                raise UsageError(f"{str(self.path)!r} holds a run of another recipe ({what}): name another --out")
        elif others := sorted(entry.name for entry in self.path.iterdir() if entry.name != ".lock"):
            raise UsageError(f"{str(self.path)!r} is not empty and holds no run ({others[0]!r}): name another --out")

    def open(self, recipe: Run, step: int | None) -> None:
        """Write the recipe and open the logs. Call this only after data and network are known to exist.

        ``step``: of the checkpoint that the run resumes from; None: the run starts.
        """
        with atomic_file(self.path / RECIPE) as beside:
            beside.write_text(dump_recipe(recipe), encoding="utf-8")
        self.rewind(step)

    def rewind(self, step: int | None) -> None:
        """Remove the metrics after ``step``, and those of an evaluation at ``step`` unless it is 0: they will come again."""
        if step is not None:
            kept = [line for line in self.metrics() if line["step"] < max(1, step + (line["event"] == "train"))]
            with atomic_file(self.path / METRICS) as beside:
                beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        else:
            (self.path / METRICS).unlink(missing_ok=True)
        with suppress(ImportError):  # an optional package
            self.events = EventFile(self.path, (step or 0) + 1)

    def metrics(self) -> list[dict[str, Any]]:
        """Read all lines of metrics, except those that a crash cut off or that are damaged."""
        try:
            lines = (self.path / METRICS).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        metrics = []
        for line in lines:
            with suppress(ValueError):
                metrics.append(parse_json(line))
        return [entry for entry in metrics if _is_entry(entry)]

    def log(self, event: str, step: int, **values: Any) -> None:
        """Append a line of metrics, and TensorBoard's scalars."""
        line = {"event": event, "step": step, **_finite(values)}
        with output_errors(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.events is not None:
            self.events.add(
                {f"{event}/{name}": value for name, value in values.items() if isinstance(value, int | float)}, step
            )

    def results(self) -> dict[str, Any] | None:
        """Read the results; None if the run is not complete, or they are damaged and have to be made again."""
        file = self.path / RESULTS
        if not file.exists():
            return None
        try:
            results = parse_json(file.read_text(encoding="utf-8"))
            check_checksum(results, str(file))
        except (ValueError, WeightsError):
            return None
        return results if isinstance(results, dict) else None

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the results of a complete run, with a checksum."""
        self.write(RESULTS, add_checksum(_finite(results)))

    def set_aside_damaged_weights(self) -> str | None:
        """Rename the weights if they are damaged; return a message if there are none that can be read."""
        file = self.path / WEIGHTS
        try:
            check_tensors(file, str(file))
            load_file(file)  # earlier versions wrote no checksum
        except FileNotFoundError:
            return f"{WEIGHTS} is missing: the next evaluation writes it anew"
        except (WeightsError, SafetensorError):
            set_aside(file, f"{WEIGHTS}.damaged")
            return f"{WEIGHTS} is damaged and was renamed to .damaged: the next evaluation writes it anew"
        return None

    def write(self, name: str, content: object) -> None:
        """Write a JSON file."""
        with atomic_file(self.path / name) as beside:
            beside.write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")

    def draw_curves(self) -> None:
        """Draw the metrics as ``curves.png``, if matplotlib is installed."""
        _draw_curves(self.metrics(), self.path / CURVES)

    def export(self, model: nn.Module, preprocessing: Preprocessing, classes: list[str], task: Task) -> None:
        """Write the weights and ``config.json``.

        timm opens them with ``timm.create_model("local-dir:RUN")``, and :func:`densefeat.load_run` also those with our heads.
        """
        facts = preprocessing.to_json()
        size, pixels = facts.pop("size"), facts.pop("pixels")
        config = facts | {"input_size": (preprocessing.pixels.in_chans, size, size)}
        source = {"file": None, "url": None, "hf_hub_id": None, "tag": None, "license": None}
        own: dict[str, Any] = {"task": task, "head": "linear", "pixels": pixels}
        backbone = model
        if isinstance(model, HeadedNet):
            backbone, own = model.backbone, own | {"head": model.kind, "head_width": model.width, "num_classes": len(classes)}
        backbone.pretrained_cfg = dict(model.pretrained_cfg) | source | config  # type: ignore[assignment, arg-type]
        with atomic_file(self.path / CONFIG) as beside:
            write_config(beside, backbone, {"label_names": classes, OWN: own})
        with atomic_file(self.path / WEIGHTS) as beside:
            tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
            save_tensors(save_file, tensors, beside, {"classes": json.dumps(classes)})


def _read_mapping(file: Path) -> dict[str, Any]:
    """Read a recipe that a run wrote. Raises UsageError where it is none."""
    try:
        content = read_yaml(file)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{str(file)!r} is damaged ({describe_error(error)}): name another --out") from error
    if not isinstance(content, dict):
        raise UsageError(f"{str(file)!r} is damaged (no keys and values): name another --out")
    return content


def _is_entry(line: Any) -> bool:
    """Check for what :meth:`RunFolder.log` writes: an event at a step, with an epoch."""
    return isinstance(line, dict) and isinstance(line.get("event"), str) and all(
        isinstance(line.get(name), int | float) for name in ("step", "epoch")
    )  # fmt: skip


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
    save_picture(figure, path, is_ours=None)  # in the folder of a run
    return True
