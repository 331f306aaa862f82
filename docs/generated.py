"""What the site takes from the package itself: the models, the recipes and their results, and help texts fit for a page."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from docutils import nodes
from sphinx.application import Sphinx

from densefeat.loading import Network, list_networks
from densefeat.training import recipe_names, recipe_text
from densefeat_cli.main import densefeat

MEASURED = Path(__file__).parents[1] / "benchmarks/results/README.md"
OUTSIDE = {"../benchmarks/results/README.md": "results.md"}  # a file of the repository, and the page that has it
GROUPS = {
    "cifar10": "CIFAR-10 and CIFAR-100",
    "svhn": "SVHN",
    "imagenet": "ImageNet",
    "tin200": "Tiny ImageNet",
    "finetune": "Images of one's own",
}
EXPECTED = re.compile(r"Expected error in %: (.*) \(\d+\.\d+.*\)")  # the numbers, then the paper's


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    as_markup(densefeat)
    app.connect("source-read", fill_in)
    app.connect("sphinx-click-process-description", examples_as_code)
    app.connect("sphinx-click-process-epilog", examples_as_code)
    app.connect("autodoc-process-docstring", shield, priority=499)  # before napoleon's
    app.connect("doctree-resolved", dashes)
    return {"parallel_read_safe": True}


def fill_in(_: Sphinx, __: str, content: list[str]) -> None:
    """In place of ``<!-- generated: NAME -->`` in a page, what the function of that name makes."""
    content[0] = re.sub(r"<!-- generated: (\w+) -->", lambda found: "\n".join(PAGES[found[1]]()), content[0])
    for outside, inside in OUTSIDE.items():
        content[0] = content[0].replace(f"]({outside}", f"]({inside}")


def models() -> Iterator[str]:
    """The table of `densefeat models`, in Markdown."""
    yield "| name | parameters | block channels | input | tag | licence | weights |"
    yield "|---|---:|---|---|---|---|---|"
    for network in list_networks():
        yield f"| {' | '.join(model_cells(network))} |"


def model_cells(network: Network) -> list[str]:
    return [
        f"`{network.name}`",
        f"{network.parameters:,}",
        " ".join(map(str, network.block_channels)),
        "×".join(map(str, network.input_size)),
        network.tag or "-",
        network.licence or "-",
        network.weights or "none published",
    ]


def recipes() -> Iterator[str]:
    """All recipes, each as its file's opening comment says it, by data set."""
    for prefix, heading in GROUPS.items():
        yield from ("", f"## {heading}")
        for name in recipe_names():
            if name.split("_")[0] == prefix:
                yield from ("", f"### {name}", "", *recipe_lines(name))


def recipe_lines(name: str) -> Iterator[str]:
    """Its first line, its commands as they stand, and what is said of data, hardware, time and results, a point each."""
    title, *rest = opening(name)
    said = next(number for number, line in enumerate(rest) if line and not line.startswith(" "))
    yield title
    yield from ("", "```text", *(line.strip() for line in rest[:said] if line), "```", "")
    yield from (line if line.startswith(" ") else f"- {line}" for line in rest[said:])


def opening(name: str) -> list[str]:
    """The lines of the comment that a recipe opens with."""
    comment = recipe_text(name).partition("\n\n")[0]
    return [line.removeprefix("#").removeprefix(" ") for line in comment.splitlines()]


def papers() -> Iterator[str]:
    """The papers' errors that recipes expect, beside those that runs of them had here."""
    yield "| recipe | the paper's error, % | measured here, % |"
    yield "|---|---|---|"
    results = measured()
    for name in recipe_names():
        text = " ".join(line.strip() for line in opening(name))
        if expected := EXPECTED.search(text):
            yield f"| [`{name}`](recipes.md#{name}) | {expected[1]} | {results.get(name, 'not measured')} |"


def measured() -> dict[str, str]:
    """The error of each recipe's last run, after how much of it, from the table that benchmarks/training.py writes."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in MEASURED.read_text(encoding="utf-8").splitlines()]
    heads, _, *runs = [row for row in rows if row]
    found = {}
    for run in (dict(zip(heads, row, strict=True)) for row in runs):
        recipe = max((name for name in recipe_names() if run["run"].startswith(name)), key=len)
        found[recipe] = f"{run['error, %']} (epochs: {run['epochs']})"
    return found


def as_markup(command: click.Command) -> None:
    """Help texts as reStructuredText, which sphinx-click takes them for: every character stands for itself."""
    command.help = escaped(command.help)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            parameter.help = escaped(parameter.help)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            as_markup(inner)


def escaped(text: str | None) -> str | None:
    """With a backslash before what reStructuredText would read as markup, but for `code`."""
    if text is None:
        return None
    parts = text.split("`")
    return "`".join(part if number % 2 else re.sub(r"([\\*_|])", r"\\\1", part) for number, part in enumerate(parts))


def examples_as_code(_: Sphinx, __: click.Context, lines: list[str]) -> None:
    """``Example: COMMAND, or: COMMAND`` as a block of commands."""
    for number, line in enumerate(lines):
        if line.startswith("Example: "):
            commands = line.removeprefix("Example: ").replace("\\", "").split(", or: ")
            lines[number : number + 1] = ["Example:", "", ".. code-block:: text", "", *(f"   {text}" for text in commands), ""]


def shield(_: Sphinx, what: str, __: str, ___: object, ____: object, lines: list[str]) -> None:
    """|w| stays as it is, where it is not code; and an attribute's text comes after an empty comment, or napoleon would take
    what stands before the first colon for its type."""
    lines[:] = [re.sub(r"(`+[^`]*`+)|\|", lambda found: found[1] or r"\|", line) for line in lines]
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def dashes(_: Sphinx, page: nodes.document, __: str) -> None:
    """Between a parameter and what it is Sphinx puts two hyphens, for smart quotes to make one dash of; options need theirs."""
    for text in [*page.findall(nodes.Text)]:
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


PAGES: dict[str, Callable[[], Iterator[str]]] = {"models": models, "recipes": recipes, "papers": papers}
