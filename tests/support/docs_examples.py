"""The examples of the pages in docs/, run as a reader would who copies them one after the other.

On a page, blocks marked ``python`` share one namespace; blocks marked ``bash`` are commands, ``densefeat …``. All run in one folder. ``<!-- example: photos -->`` says what lies in it at the start. What must not
run (a network, a GPU, hours) is marked ``sh`` or ``text``.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from densefeat_cli.main import main
from densefeat_recipes.demo import cut_photographs

DOCS = Path(__file__).parents[1] / "docs"
OLDER = {"heads.md", "scale.md", "speed.md", "training.md"}  # their examples want data and hours
FENCE = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASSETS = {"photos": lambda folder: cut_photographs(folder / "photos")}  # photos/china/*.jpg, photos/flower/*.jpg, 24 each


@dataclass(frozen=True)
class Block:
    """``text`` between fences, from ``line`` (from 1) of its page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in FENCE.finditer(text)]


def pages() -> list[Path]:
    """Those with examples to run."""
    return [page for page in sorted(DOCS.rglob("*.md")) if page.name not in OLDER and blocks(page)]


def commands(block: Block) -> Iterator[list[str]]:
    """``densefeat extract …`` as ``["densefeat", "extract", …]``; a backslash at the end of a line goes on in the next."""
    for line in block.text.replace("\\\n", "").splitlines():
        if words := shlex.split(line, comments=True):
            assert words[0] == "densefeat", f"line {block.line}: {words[0]} is not run here: mark the block sh or text"
            yield words


def run_command(words: list[str]) -> None:
    """The command in this process, which has torch already. AssertionError unless it ends with 0."""
    with patch.object(sys, "argv", words):
        try:
            main()
        except SystemExit as ended:
            assert ended.code == 0, f"{shlex.join(words)}: exit code {ended.code}"


def run_page(page: Path, folder: Path) -> None:
    """Run all blocks, in ``folder``, which is the working directory; tracebacks show the lines of the page."""
    for name in re.findall(r"<!-- example: (\w+) -->", page.read_text()):
        ASSETS[name](folder)
    namespace = {"__name__": "example"}
    for block in blocks(page):
        if block.language == "bash":
            for words in commands(block):
                run_command(words)
        else:
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
