"""``densefeat evaluate``."""

from pathlib import Path

import click

from densefeat.base import printable

_TOP = {"top1": "top-1 %", "top5": "top-5 %"}  # of one class an image


@click.command(epilog="Example: densefeat evaluate runs/imagenet_densenet121 --data imagenet/val --crops 10")
@click.argument("model")
@click.option("--data", required=True, help="A folder of classes, Parquet or tar files, or CIFAR's or SVHN's own folder.")
@click.option("--weights", type=click.Path(path_type=Path), help="A checkpoint file of your own for MODEL.")
@click.option("--crops", type=click.Choice(["1", "10"]), default="1", show_default=True, help="10: corners, centre, mirrored.")
@click.option("--image-size", type=click.IntRange(32), help="Side of a crop, pixels.  [default: the weights' own]")
@click.option("--crop-pct", type=float, help="Share of the resized image that a crop keeps.  [default: the weights' own]")
@click.option("--label-column", help="Of Parquet files (default: label), or the extension of tar members (default: cls).")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Processes that decode.")
@click.option("--per-class", is_flag=True, help="A row for each class, worst first.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything there, too.")
def evaluate(
    model: str, data: str, weights: Path | None, crops: str, image_size: int | None, crop_pct: float | None,
    label_column: str | None, device: str | None, workers: int, per_class: bool, json_file: Path | None,
) -> None:  # fmt: skip
    """Top-1 and top-5 accuracy of MODEL, a name of densefeat models or timm's, or the folder of a run.

    Of a run with several labels an image: mean average precision.
    """
    import json

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from densefeat.base import atomic_file, check_target, choose_device, progress_bar
    from densefeat.evaluation import evaluate

    if json_file is not None:
        check_target(json_file)
    with progress_bar("evaluating", None) as advance:
        result = evaluate(
            model, data, weights=weights, crops=int(crops), image_size=image_size, crop_pct=crop_pct,
            label_column=label_column, device=str(choose_device(device)), workers=workers, advance=advance,
        ).to_json()  # fmt: skip
    if json_file is not None:
        with atomic_file(json_file) as beside:
            beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shown = {"map": "mAP %", "auroc": "AUROC", "macro_f1": "macro F1 %"} if "map" in result else _TOP
    if len(result["per_class"]) <= 5:
        shown = {name: title for name, title in shown.items() if name != "top5"}
    rows = [{"class": "all", **result}]
    if per_class:
        rows += sorted((row for row in result["per_class"] if row["images"]), key=lambda row: row[next(iter(shown))])
    table = Table(box=None, pad_edge=False)
    for column in ("class" if per_class else printable(model), "images", *shown.values()):
        table.add_column(Text(column))
    for row in rows:
        numbers = ("" if row[name] is None else f"{row[name]:.2f}" for name in shown)
        table.add_row(Text(printable(str(row["class"]))), f"{row['images']:,}", *numbers)
    console = Console()
    console.width = console.width if console.is_terminal else 160
    console.print(table)
    left_out = len(result["unread"]) + result["unlabelled"]
    if left_out:
        first = result["unread"][0] if result["unread"] else {}
        reason = printable(f", the first: {first['key']}: {first['reason']}") if first else ""
        click.echo(f"left out: {result['unlabelled']} without a label, {len(result['unread'])} unreadable{reason}", err=True)
