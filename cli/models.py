"""``densefeat models``."""

import click

from densefeat import loading
from densefeat_cli.options import epilog
from densefeat_cli.output import print_table


@click.command(epilog=epilog("models '*121*'"))
@click.argument("pattern", default="*")
def models_command(pattern: str) -> None:
    """List the networks: parameters, channels of each block, input, weights by tag (the default first) and where they are."""
    rows = [
        [
            network.name,
            f"{network.parameters:,}",
            " ".join(map(str, network.block_channels)),
            "×".join(map(str, network.input_size)),
            network.tag or "-",
            network.licence or "-",
            network.weights or "none published",
        ]
        for network in loading.list_networks(pattern)
    ]
    headings = ["name", "parameters", "block channels", "input", "tag", "licence", "weights"]
    print_table(headings, rows, right=["parameters"], whole=["name"])
