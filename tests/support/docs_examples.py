"""Run the examples of the pages in docs/, as a reader would who copies them one after the other.

On a page, blocks marked ``python`` share one namespace; blocks marked ``bash`` are commands, ``densefeat …``. All run in one
folder, in which ``<!-- example: photos -->`` puts photographs at the start. What must not run (it needs a network, a GPU or
hours) is marked ``sh`` or ``text``.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from densefeat_recipes.demo import cut_photographs
from support.commands import run_command

DOCS = Path(__file__).parents[2] / "docs"
OLDER = {"heads.md", "scale.md", "speed.md", "training.md"}  # their examples need data and hours
FENCE = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASSETS = {"photos": lambda folder: cut_photographs(folder / "photos")}  # photos/china/*.jpg, photos/flower/*.jpg, 24 each


@dataclass(frozen=True)
class Block:
    """Text between fences. ``line``: its first line on the page, from 1."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in FENCE.finditer(text)]


def pages() -> list[Path]:
    """List the pages that have examples to run."""
    return [page for page in sorted(DOCS.rglob("*.md")) if page.name not in OLDER and blocks(page)]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield each command as a list of words, ``["densefeat", "extract", …]``; a backslash continues a line."""
    for line in block.text.replace("\\\n", "").splitlines():
        if words := shlex.split(line, comments=True):
            assert words[0] == "densefeat", f"line {block.line}: {words[0]} is not run here: mark the block sh or text"
            yield words


def run_page(page: Path, folder: Path) -> None:
    """Run all blocks of a page in ``folder``, the working directory; tracebacks show the lines of the page."""
    for name in re.findall(r"<!-- example: (\w+) -->", page.read_text()):
        ASSETS[name](folder)
    namespace = {"__name__": "example"}
    for block in blocks(page):
        if block.language == "bash":
            for words in commands(block):
                run_command(*words[1:], check=True)
        else:
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
