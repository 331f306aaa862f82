"""The examples on the pages run, in an empty folder, without a network."""

from pathlib import Path

import pytest

from support.commands import run_command
from support.docs_examples import Block, blocks, commands, pages, run_page

SLOW = {"index.md": pytest.mark.slow, "export.md": pytest.mark.slow, "integrations.md": pytest.mark.slow}


# Lightning warns of this machine's cores, and of code in it and its metrics that torch has renamed
@pytest.mark.filterwarnings(
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:GPU available but not used",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
)
@pytest.mark.parametrize("page", [pytest.param(page, marks=SLOW.get(page.name, ()), id=page.name) for page in pages()])
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path)


def test_pages_are_found() -> None:
    found = {page.name: {block.language for block in blocks(page)} for page in pages()}
    assert found["quickstart.md"] == {"python", "bash"}
    assert "python" in found["integrations.md"]


def test_a_page_that_is_wrong_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "A page\n\n```python\nx = 1\n```\n\n```sh\ndensefeat finetune\n```\n\n```python\nx += 1\nassert x == 3\n```\n"
    )
    with pytest.raises(AssertionError) as failed:
        run_page(page, tmp_path)
    assert failed.traceback[-1].lineno == 13 - 1
    with pytest.raises(AssertionError, match="densefeat info absent/: exit code 2"):
        run_command("info", "absent/", check=True)
    with pytest.raises(AssertionError, match="line 3: pip is not run here"):
        list(commands(Block("bash", "pip install densefeat\n", 3)))


def test_commands_of_a_block() -> None:
    text = "densefeat info embeddings/  # rows\n\ndensefeat probe embeddings/ \\\n    --out 'my probe/'\n"
    assert list(commands(Block("bash", text, 1))) == [
        ["densefeat", "info", "embeddings/"],
        ["densefeat", "probe", "embeddings/", "--out", "my probe/"],
    ]
