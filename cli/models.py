"""``densefeat models``."""

import click


@click.command(epilog="Example: densefeat models '*121*'")
@click.argument("pattern", default="*")
def models(pattern: str) -> None:
    """Table of the networks: parameters, channels of each block, input, weights by tag (the default first), where they are."""
    from rich.console import Console
    from rich.table import Table

    from densefeat.loading import list_networks

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "parameters", "block channels", "input", "tag", "licence", "weights"):
        table.add_column(
            column, justify="right" if column == "parameters" else "left", overflow="fold", no_wrap=column == "name"
        )
    for network in list_networks(pattern):
        table.add_row(
            network.name,
            f"{network.parameters:,}",
            " ".join(map(str, network.block_channels)),
            "×".join(map(str, network.input_size)),
            network.tag or "-",
            network.licence or "-",
            network.weights or "none published",
        )
    console = Console()
    console.width = console.width if console.is_terminal else 160
    console.print(table)
