"""``densefeat evaluate``."""

from pathlib import Path
from typing import Any

import click

from densefeat import base, evaluation
from densefeat_cli.options import (
    OUTPUT_TYPE,
    PATH_TYPE,
    base_option,
    channel_stats_option,
    epilog,
    label_column_option,
    labelled_option,
    model_argument,
    pixel_options,
    training_device_option,
    weights_option,
)
from densefeat_cli.output import print_line, print_note, print_table

_KIND = "densefeat evaluation"
_SINGLE_LABEL = {"top1": "top-1 %", "top5": "top-5 %"}
_MULTI_LABEL = {"map": "mAP %", "auroc": "AUROC", "macro_f1": "macro F1 %"}


@click.command(epilog=epilog("evaluate runs/imagenet_densenet121 --data imagenet/val --crops 10"))
@model_argument
@labelled_option()
@weights_option
@click.option("--crops", type=click.Choice(["1", "10"]), default="1", show_default=True,
              help="10: corners and centre, each mirrored.")  # fmt: skip
@click.option("--image-size", type=click.IntRange(32), help="Pixels of a crop's side.  [default: the weights' own]")
@click.option("--crop-pct", type=float, help="Share of the resized image that a crop keeps.  [default: the weights' own]")
@label_column_option()
@base_option
@click.option("--class-order", type=click.Choice(["text", "natural"]),
              help="Order of classes that the weights do not name: text, as torchvision's; natural, as timm's.")  # fmt: skip
@click.option(
    "--classes", type=PATH_TYPE, metavar="FILE", help="The classes in the order of the outputs: one a line, or .json."
)
@pixel_options
@channel_stats_option
@training_device_option
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that decode.")
@click.option("--per-class", is_flag=True, help="Also print a row for each class, worst first.")
@click.option("--json", "json_file", type=OUTPUT_TYPE, help="JSON file to write, with everything measured.")
def evaluate_command(
    model: str, data: str, crops: str, device: str | None, per_class: bool, json_file: Path | None, **options: Any
) -> None:
    """Measure the top-1 and top-5 accuracy of MODEL: a name of `densefeat models`, any timm model, or a run's folder.

    For a run with several labels an image: mean average precision.
    """
    if json_file is not None:
        base.check_target(json_file, base.has_kind(_KIND))
    with base.progress_bar("evaluating", None) as advance:
        result = evaluation.evaluate(
            model, data, crops=int(crops), device=str(base.choose_device(device)), advance=advance, **options
        ).to_json()
    if json_file is not None:
        base.save_json(json_file, _KIND, result)
    _print_scores(result, model, per_class)
    for note in result["notes"]:
        print_note(note)
    left_out = len(result["unread"]) + result["unlabelled"]
    if left_out:
        first = result["unread"][0] if result["unread"] else {}
        reason = f", the first: {first['key']}: {first['reason']}" if first else ""
        print_line(f"left out: {result['unlabelled']} without a label, {len(result['unread'])} unreadable{reason}", err=True)


def _print_scores(result: dict[str, Any], model: str, per_class: bool) -> None:
    scores = _MULTI_LABEL if "map" in result else _SINGLE_LABEL
    if len(result["per_class"]) <= 5:
        scores = {name: title for name, title in scores.items() if name != "top5"}
    rows = [{"class": "all", **result}]
    if per_class:
        rows += sorted((row for row in result["per_class"] if row["images"]), key=lambda row: row[next(iter(scores))])
    cells = [
        [str(row["class"]), f"{row['images']:,}", *("" if row[name] is None else f"{row[name]:.2f}" for name in scores)]
        for row in rows
    ]
    numbers = ["images", *scores.values()]
    print_table(["class" if per_class else model, *numbers], cells, right=numbers)
