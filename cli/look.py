"""``densefeat look``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from densefeat import base, images, report
from densefeat.errors import DecodeError
from densefeat_cli.options import OUTPUT_TYPE, PATH_TYPE, ModelName, epilog, pixel_options
from densefeat_cli.output import print_line, print_table

if TYPE_CHECKING:
    from densefeat.images import ImageFacts, PixelRule


@click.command(epilog=epilog("look scan.dcm --range -160:240 --picture scan.png"))
@click.argument("file", type=PATH_TYPE)
@pixel_options
@click.option(
    "--model", type=ModelName(), default="densefeat_densenet121", show_default=True, help="Network whose input is shown."
)
@click.option("--picture", type=OUTPUT_TYPE, metavar="FILE", help="PNG or SVG to write: what the network reads.")
def look_command(file: Path, pixels: "PixelRule | None", model: str, picture: Path | None) -> None:
    """Look at an image FILE: format, bands, bits, the range it declares and has, and what would become of it."""
    if picture is not None:
        base.check_picture(picture)
    rule = pixels or images.PixelRule()
    try:
        facts = images.inspect_image(images.read_file(file), rule)
    except DecodeError as error:
        raise DecodeError(f"image {str(file)!r}: {error}", error.stage) from error
    print_table(["", str(file)], _list_facts(facts))
    bands = [[band.name, *(f"{value:.6g}" for value in (band.low, *band.percentiles, band.high))] for band in facts.bands]
    print_table(["band", "lowest", "1 %", "99 %", "highest"], bands, right=["lowest", "1 %", "99 %", "highest"])
    if facts.decoded is None:
        raise click.ClickException(facts.problem)
    if picture is not None:
        report.draw_input(facts, model, rule, picture)
        print_line(f"wrote {picture}: what {model} reads")


def _list_facts(facts: "ImageFacts") -> list[list[str]]:
    declared = "nothing" if facts.declared is None else "{:g} to {:g}".format(*facts.declared)
    rows = [
        ["format", facts.format + (", the first of several images" if facts.several else "")],
        ["size", f"{facts.width} × {facts.height} pixels"],
        ["samples", f"{facts.dtype}, {facts.colours}" + (f", {facts.bits} bits used" if facts.bits else "")],
        ["declared range", declared],
        ["missing value", "none declared" if facts.nodata is None else f"{facts.nodata:g}"],
        ["colour profile", "embedded" if facts.profile else "none"],
    ]
    if facts.decoded is not None:
        rows.append(["read as", facts.decoded.range + (", with missing pixels" if facts.decoded.missing else "")])
    return rows
