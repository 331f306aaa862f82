"""``densefeat probe``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densefeat import images as inputs
from densefeat import labels as labelling
from densefeat import probing, sgd_probe
from densefeat import store as stores
from densefeat.base import Ranks
from densefeat_cli.options import (
    PATH_TYPE,
    epilog,
    fitted_stats_option,
    image_size_option,
    in_chans_option,
    model_option,
    out_option,
    pixel_options,
    pool_option,
    weights_option,
)
from densefeat_cli.output import fits_terminal, print_line, print_note, print_table

if TYPE_CHECKING:
    from densefeat.probing import Probed

_EXTRACTION_OPTIONS = (
    "model", "weights", "image_size", "pool", "pixels", "in_chans", "channel_stats", "device", "batch_size", "workers",
)  # fmt: skip
_NAMES = {"pixels": "range (or --channels, --nodata, --icc)"}  # of options in messages, where they are others
_BY_IMAGE = ("sgd", "attentive")  # protocols that read images, augmented, in each epoch
_LABELLING_OPTIONS = ("labels", "label_column", "task", "split_column", "group_column", "seed")


@click.command(epilog=epilog("probe embeddings/ --out probe/", "probe --images photos/ --out probe/"))
@click.argument("store", required=False, type=PATH_TYPE)
@out_option("Folder to write: results, charts, page and probe.")
@click.option("--images", help="Images to extract features from, into OUT/features; with STORE: where its images are.")
@click.option("--test", help="Store (or, with --images, images) to test on.  [default: a fifth of the rows]")
@click.option("--protocol", type=click.Choice(["logreg", "knn", "ridge", "layers", *_BY_IMAGE]),
              help="layers: on the features that matter, of all layers; sgd, attentive: on augmented --images."
              "  [default: logreg, for numbers ridge]")  # fmt: skip
@click.option("--standardize", is_flag=True, help="For logreg: scale features by mean and deviation over the training rows.")
@click.option("--labels", metavar="folder|FILE.csv", help="class/image.jpg, or a CSV of path,label.  [default: the store's own;"
              " for a folder of images: folder]")  # fmt: skip
@click.option("--label-column", metavar="NAME", help="Column with the labels.  [default: label]")
@click.option("--task", type=click.Choice(["auto", "single", "multi", "regression"]), default="auto", show_default=True,
              help="multi: labels a|b; auto: by the labels.")  # fmt: skip
@click.option("--split-column", metavar="NAME", help="Column of the CSV or the store that says train, val or test.")
@click.option("--group-column", metavar="NAME", help="Column whose equal values, such as a patient's, stay on one side.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@model_option(purpose="For --images: ", note="  [default: densefeat_densenet121]")
@weights_option
@image_size_option
@pool_option(default=None)
@pixel_options
@in_chans_option
@fitted_stats_option
@click.option("--device", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option("--batch-size", type=click.IntRange(1), help="Images a pass.")
@click.option("--workers", type=int, help="Threads that read and decode.")
@click.option("--epochs", type=click.IntRange(1), help="For sgd and attentive: passes over the images.")
def probe_command(store: Path | None, out: Path, images: str | None, protocol: str | None, **options: Any) -> None:
    """Find which block's features predict the labels best: fit heads on a STORE, or on images.

    A head for each block, for the best blocks together, and for all: selected on validation rows, reported on test rows. OUT
    gets results.json, report.html, charts, predictions.csv, and probe.safetensors.
    """
    _check_input(store, images, protocol, options)
    chosen = {name: value for name, value in options.items() if value is not None}
    if protocol in _BY_IMAGE:
        _probe_images(str(images), out, chosen | {"protocol": protocol})
        return
    for name in (*_EXTRACTION_OPTIONS, "epochs"):
        options.pop(name)
    if store is None:
        options |= _extract_stores(str(images), out, chosen)
        store, images = options.pop("store"), _find_tested_images(images, chosen.get("test"))
    opened = stores.open_store(store)  # before the heads load torch
    if images is None:
        print_note("report.html will show no images: --images names the place where they are")
    _print_results(probing.probe(opened, out, images=images, protocol=protocol, **options))


def _check_input(store: Path | None, images: str | None, protocol: str | None, options: dict[str, Any]) -> None:
    """Raise UsageError for images that do not exist, and for options that exclude each other."""
    if store is None and images is None:
        raise click.UsageError("give a STORE of densefeat extract, or --images to extract features from")
    if protocol in _BY_IMAGE:
        if options["standardize"]:
            raise click.UsageError("--standardize is for --protocol logreg")
        if store is not None or images is None:
            raise click.UsageError(f"--protocol {protocol} learns from augmented images: give --images, and no STORE")
        if options["task"] == "regression":
            raise click.UsageError(f"--task regression is not for --protocol {protocol}: use ridge")
        if protocol == "attentive" and options["pool"] is not None:
            raise click.UsageError("--pool is not for --protocol attentive, which reads whole maps")
    else:
        if options["epochs"] is not None:
            raise click.UsageError("--epochs is for --protocol sgd and attentive")
        if store is not None:
            if extraction := [name for name in _EXTRACTION_OPTIONS if options[name] is not None]:
                name = _NAMES.get(extraction[0], extraction[0].replace("_", "-"))
                raise click.UsageError(f"--{name} is only for --images: a STORE has its features")
            if options["labels"] == "folder":
                raise click.UsageError("--labels folder is for --images: give --labels FILE.csv, or none for the store's own")
    if store is None:
        for text in (images, options["test"]):
            if text is not None:
                inputs.check_input(text)


def _probe_images(images: str, out: Path, chosen: dict[str, Any]) -> None:
    chosen.pop("standardize")
    if "pool" in chosen:
        chosen["pools"] = chosen.pop("pool")
    probed = sgd_probe.probe_images(images, out, **chosen)
    if Ranks.from_environment().first:  # under torchrun only the first process prints
        _print_results(probed)


def _extract_stores(images: str, out: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """Extract stores of the images and the test images, unless that is done already; return options for :func:`probe`."""
    settings = {name: chosen[name] for name in _EXTRACTION_OPTIONS if name in chosen}
    labels = chosen.get("labels"), chosen.get("label_column")
    print_note(f"features of {images} to {out / probing.FEATURES}")
    labelling = {name: chosen[name] for name in _LABELLING_OPTIONS if name in chosen}
    store, *others = probing.extract_images(images, chosen.get("test"), out, labelling, **settings)
    options = {"store": store, "test": others[0] if others else None, "labels": None, "label_column": None}
    return options | probing.label_options(*labels)


def _find_tested_images(images: str | None, test: str | None) -> str | None:
    """Return where the images of the test rows are; None where they are those of a store, which nobody named."""
    if test is None:
        return images
    return None if stores.is_store(test) else test


def _print_results(probed: "Probed") -> None:
    """Print tables on stdout; remarks, and where everything is, on stderr."""
    results = probed.results
    for line in [*labelling.format_remarks(results["labels"]), *results["notes"]]:
        print_note(line)
    table = probing.candidate_table(results)
    if not fits_terminal(table.headings, table.rows):
        table = probing.candidate_table(results, narrow=True)
    print_table(table.headings, table.rows, right=table.headings[1:], bold=table.bold_rows)
    print_line()
    if results["few_shot"]:
        table = probing.few_shot_table(results)
        print_table(table.headings, table.rows, right=table.headings[1:])
        print_line()
    chosen = f"saved: {results['best']}" if "layers" in results else f"best: {results['best']} (by the validation rows)"
    print_line(f"{chosen}; brackets: 95 % intervals on the test rows")
    if results.get("remark"):
        print_line(f"{results['best']}: {results['remark']}")
    if results["comparison"]:
        print_line(results["comparison"]["told"])
    if calibration := (results.get("certainty") or {}).get("calibration", {}).get("test"):
        before, after = (calibration[when]["ece"] for when in ("before", "after"))
        temperature = f"a temperature of {results['certainty']['temperature']:.3g}"
        print_line(f"probabilities: calibration error {before:.3f} (test rows), {after:.3f} after {temperature}")
    if not (probed.path / "blocks.png").exists():
        print_note("no charts: they need matplotlib (pip install matplotlib)")
    print_line(f"{'already there' if probed.done_before else 'wrote'}: {probed.path / 'report.html'}", err=True)
