"""The model card of a folder for the hub: what is known of a network, and how to use it. It has recorded figures alone."""

from typing import Any

import yaml

from densefeat.export.source import ExportSource
from densefeat.images import Preprocessing
from densefeat.loading import read_card_text, read_results
from densefeat.nets import VARIANTS

_DATASETS = {
    "in1k": "imagenet-1k",
    "in22k": "imagenet-22k",
    "tin200": "zh-plus/tiny-imagenet",
}  # names on the hub, by the end of a tag
_SCORES = {"top1": "top-1 %", "top5": "top-5 %", "map": "mAP %", "macro_f1": "macro F1 %"}


def format_card(source: ExportSource, preprocessing: Preprocessing, metadata: dict[str, Any]) -> str:
    """Format the ``README.md`` with its YAML front matter."""
    sections = [
        f"# {source.name}",
        _format_introduction(source),
        "## Use",
        _format_usage(source),
        "## Input",
        _format_input(preprocessing),
        "## Provenance",
        _format_provenance(source, metadata),
        *_format_records(source),
    ]
    return f"---\n{_format_front_matter(source)}---\n\n" + "\n\n".join(sections) + "\n"


def _format_front_matter(source: ExportSource) -> str:
    task = "image-classification" if source.loaded.num_classes else "image-feature-extraction"
    facts: dict[str, Any] = {"library_name": "timm", "pipeline_tag": task}
    if licence := source.weights["license"]:
        facts["license"] = licence
    facts["tags"] = [task, "timm", "densefeat"] if _is_ours(source) else [task, "timm"]
    if dataset := _find_dataset(source):
        facts["datasets"] = [dataset]
    if _read_scores(source) or _read_bundled_card(source):
        facts["metrics"] = ["accuracy"]
    return yaml.safe_dump(facts, sort_keys=False)


def _find_dataset(source: ExportSource) -> str | None:
    """Find the dataset from the tag of published weights; for files and runs it is not known."""
    return _DATASETS.get(source.name.rpartition("_")[2].rpartition(".")[2]) if source.loaded.published else None


def _is_ours(source: ExportSource) -> bool:
    return source.config.get("architecture") in VARIANTS


def _format_introduction(source: ExportSource) -> str:
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    classes = source.loaded.num_classes
    head = f"a classifier for {classes:,} classes" if classes else "no classifier"
    return f"`{source.config['architecture']}`, {parameters:,} parameters, with {head}."


def _format_usage(source: ExportSource) -> str:
    ours = _is_ours(source)
    comment = "registers the architecture with timm; installed from a clone of its repository: pip install -e ."
    first = f"import densefeat  # {comment}\n" if ours else ""
    output = "scores" if source.loaded.num_classes else "features"
    lines = [
        "With timm, `USER/NAME` being this repository (or `local-dir:FOLDER` for `hf-hub:USER/NAME`):",
        f'```python\n{first}import timm\n\nmodel = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()\n'
        "config = timm.data.resolve_model_data_config(model)\n"
        "prepare = timm.data.create_transform(**config, is_training=False)\n"
        f"{output} = model(prepare(image).unsqueeze(0))  # image: a PIL image, RGB\n```",
    ]
    if ours:
        lines += [
            "The features of every block, with densefeat, of the folder downloaded:",
            '```python\nimport densefeat\n\nextractor = densefeat.FeatureExtractor("FOLDER")\n'
            'features = extractor(images)  # {"block1": (N, C1), …}\n```',
        ]
    return "\n\n".join(lines)


def _format_input(preprocessing: Preprocessing) -> str:
    numbers = {name: ", ".join(f"{value:g}" for value in getattr(preprocessing, name)) for name in ("mean", "std")}
    rows = {
        "size": f"{preprocessing.size} × {preprocessing.size} pixels, RGB",
        "resize": f"{preprocessing.interpolation}, {preprocessing.crop_mode} crop of {preprocessing.crop_pct:g}",
        "numbers": f"(x / 255 − mean) / std, mean {numbers['mean']}, std {numbers['std']}",
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _format_provenance(source: ExportSource, metadata: dict[str, Any]) -> str:
    weights = source.weights
    return "\n".join(
        [
            f"- weights: {weights['source']}, SHA-256 {weights['sha256'] or 'not known'}",
            f"- licence: {weights['license'] or 'not recorded; settle it before this is published'}",
            f"- written by {metadata['made_by']}",
        ]
    )


def _format_records(source: ExportSource) -> list[str]:
    """Format the figures that came with the run or the weights, if any."""
    if scores := _read_scores(source):
        columns = [name for name in _SCORES if any(name in split for split in scores.values())]
        head = f"| split | images | {' | '.join(_SCORES[name] for name in columns)} |\n|---|---{'|---' * len(columns)}|"
        rows = [f"| {name} | {split.get('images', '')} | {' | '.join(_format_score(split.get(c)) for c in columns)} |"
                for name, split in scores.items()]  # fmt: skip
        return ["## Results", "As the run recorded them in its `results.json`:", "\n".join([head, *rows])]
    if text := _read_bundled_card(source):
        return ["## About the weights", text.partition("\n")[2].strip().replace("\n## ", "\n### ")]
    return []


def _format_score(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else ""


def _read_scores(source: ExportSource) -> dict[str, dict[str, Any]]:
    """Read the scores of a run by split; empty for a network whose head was left out."""
    if source.loaded.run is None or not source.loaded.num_classes:
        return {}
    results = read_results(source.loaded.run.path)
    return {name: split for name, split in results.items() if isinstance(split, dict) and _SCORES.keys() & split.keys()}


def _read_bundled_card(source: ExportSource) -> str | None:
    """Read the card that came with the published weights of this package."""
    return read_card_text(source.loaded.file) if source.loaded.published else None
