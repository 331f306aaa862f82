"""The model card: what is known of a network and how to use it, and no figure that nobody recorded."""

import json
from pathlib import Path
from typing import Any

import yaml

from densefeat.export.source import Source
from densefeat.images import Preprocessing
from densefeat.nets import VARIANTS

_DATASETS = {"in1k": "imagenet-1k", "in22k": "imagenet-22k", "tin200": "zh-plus/tiny-imagenet"}  # the hub's, by end of a tag
_SCORES = {"top1": "top-1 %", "top5": "top-5 %", "map": "mAP %", "macro_f1": "macro F1 %"}


def card(source: Source, preprocessing: Preprocessing, metadata: dict[str, Any]) -> str:
    """``README.md`` with its YAML front matter."""
    sections = [
        f"# {source.name}",
        _introduction(source),
        "## Use",
        _usage(source),
        "## Input",
        _input_table(preprocessing),
        "## Provenance",
        _provenance(source, metadata),
        *_recorded(source),
    ]
    return f"---\n{_front_matter(source)}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(source: Source) -> str:
    task = "image-classification" if source.num_classes else "image-feature-extraction"
    facts: dict[str, Any] = {"library_name": "timm", "pipeline_tag": task}
    if licence := source.weights["license"]:
        facts["license"] = licence
    facts["tags"] = [task, "timm", "densefeat"] if _is_ours(source) else [task, "timm"]
    if dataset := _dataset_of(source):
        facts["datasets"] = [dataset]
    if _scores_of_run(source) or _bundled_card(source):
        facts["metrics"] = ["accuracy"]
    return yaml.safe_dump(facts, sort_keys=False)


def _dataset_of(source: Source) -> str | None:
    """By the tag of published weights; of files and runs it is not known."""
    return _DATASETS.get(source.name.rpartition("_")[2].rpartition(".")[2]) if source.published else None


def _is_ours(source: Source) -> bool:
    return source.config.get("architecture") in VARIANTS


def _introduction(source: Source) -> str:
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    classes = source.num_classes
    head = f"a classifier for {classes:,} classes" if classes else "no classifier"
    return f"`{source.config['architecture']}`, {parameters:,} parameters, with {head}."


def _usage(source: Source) -> str:
    ours = _is_ours(source)
    told = "registers the architecture with timm; installed from a clone of its repository: pip install -e ."
    first = f"import densefeat  # {told}\n" if ours else ""
    given = "scores" if source.num_classes else "features"
    lines = [
        "With timm, `USER/NAME` being this repository (or `local-dir:FOLDER` for `hf-hub:USER/NAME`):",
        f'```python\n{first}import timm\n\nmodel = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()\n'
        "config = timm.data.resolve_model_data_config(model)\n"
        "prepare = timm.data.create_transform(**config, is_training=False)\n"
        f"{given} = model(prepare(image).unsqueeze(0))  # image: a PIL image, RGB\n```",
    ]
    if ours:
        lines += [
            "The features of every block, with densefeat, of the folder downloaded:",
            '```python\nimport densefeat\n\nextractor = densefeat.FeatureExtractor("FOLDER")\n'
            'features = extractor(images)  # {"block1": (N, C1), …}\n```',
        ]
    return "\n\n".join(lines)


def _input_table(preprocessing: Preprocessing) -> str:
    numbers = {name: ", ".join(f"{value:g}" for value in getattr(preprocessing, name)) for name in ("mean", "std")}
    rows = {
        "size": f"{preprocessing.size} × {preprocessing.size} pixels, RGB",
        "resize": f"{preprocessing.interpolation}, {preprocessing.crop_mode} crop of {preprocessing.crop_pct:g}",
        "numbers": f"(x / 255 − mean) / std, mean {numbers['mean']}, std {numbers['std']}",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _provenance(source: Source, metadata: dict[str, Any]) -> str:
    weights = source.weights
    return "\n".join(
        [
            f"- weights: {weights['source']}, SHA-256 {weights['sha256'] or 'not known'}",
            f"- licence: {weights['license'] or 'not recorded; settle it before this is published'}",
            f"- written by {metadata['made_by']}",
        ]
    )


def _recorded(source: Source) -> list[str]:
    """Figures, where the run or the weights came with some."""
    if scores := _scores_of_run(source):
        columns = [name for name in _SCORES if any(name in split for split in scores.values())]
        head = f"| split | images | {' | '.join(_SCORES[name] for name in columns)} |\n|---|---{'|---' * len(columns)}|"
        rows = [f"| {name} | {split.get('images', '')} | {' | '.join(_figure(split.get(c)) for c in columns)} |"
                for name, split in scores.items()]  # fmt: skip
        return ["## Results", "As the run recorded them in its `results.json`:", "\n".join([head, *rows])]
    if text := _bundled_card(source):
        return ["## About the weights", text.partition("\n")[2].strip().replace("\n## ", "\n### ")]
    return []


def _figure(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else ""


def _scores_of_run(source: Source) -> dict[str, dict[str, Any]]:
    """By split; none of a head that was left out."""
    file = None if source.run is None else source.run / "results.json"
    if file is None or not source.num_classes or not file.is_file():
        return {}
    results = json.loads(file.read_text(encoding="utf-8"))
    return {name: split for name, split in results.items() if isinstance(split, dict) and _SCORES.keys() & split.keys()}


def _bundled_card(source: Source) -> str | None:
    """What came with weights of this package."""
    file = source.config.get("file") if source.published else None
    described = Path(file).with_suffix(".md") if file else None
    return described.read_text(encoding="utf-8") if described is not None and described.is_file() else None
