"""The docs site: built strictly, and what it has to have."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import densefeat
from densefeat.loading.catalogue import list_networks
from densefeat.training.recipe_files import recipe_names, recipe_text
from densefeat_cli.main import densefeat as commands
from support.browser import chromium

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "object": "data"}
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch"}
VOID = {"br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}


class Page(HTMLParser):
    """One built page: ``ids``, ``links``, what it loads, its ``text``, the text of each section by id, and its tables' rows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.sections: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[tuple[str, str | None]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in given}
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        self.links += [attributes["href"]] if tag == "a" and "href" in attributes else []
        self.loaded += [attributes[LOADED[tag]]] if tag in LOADED and LOADED[tag] in attributes else []
        if tag == "link" and LOADED_LINKS & set(attributes["rel"].split()):
            self.loaded.append(attributes["href"])
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append((tag, attributes.get("id")))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self._open]
        if "script" in tags or "style" in tags:
            return
        self.text += data
        for tag, name in self._open:
            if tag == "section" and name:
                self.sections[name] = self.sections.get(name, "") + data
        if "td" in tags:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """All pages by name, as ``make docs`` builds them: a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", out / "doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, "docs", out / "html"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return {str(path.relative_to(out / "html")): Page(path) for path in sorted((out / "html").rglob("*.html"))}


def words(text: str) -> str:
    """With single spaces, and without the marks around code."""
    return " ".join(text.replace("`", "").split())


def all_commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in command.list_commands(context):
            yield from all_commands(command.get_command(context, inner), f"{name}-{inner}")


def test_every_help_text_is_there(site: dict[str, Page]) -> None:
    for name, command in all_commands(commands, "densefeat"):
        told = words(site["cli.html"].sections[name])
        texts = (command.help or "").replace("Example:", "").split("\n\n")
        texts += (command.epilog or "").removeprefix("Example: ").split(", or: ")
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                texts += [*parameter.opts, parameter.help or ""]
            else:
                texts.append(parameter.human_readable_name)
        assert not [text for text in texts if words(text) not in told], name


def test_every_public_name_is_there(site: dict[str, Page]) -> None:
    found = {name for page in site if page.startswith("api/") for name in site[page].ids}
    assert not {f"densefeat.{name}" for name in densefeat.__all__} - found


def test_no_page_shows_the_marks_of_its_source(site: dict[str, Page]) -> None:
    """Of reStructuredText in docstrings, of Markdown, of what should have been filled in; none is taken for a type."""
    for name, page in site.items():
        assert not re.findall(r".*(?:``|:\w+:`|generated:|:::|\]\(|^Type:).*", page.text, re.MULTILINE), name


def test_pages_load_nothing_from_elsewhere(site: dict[str, Page]) -> None:
    assert any(page.loaded for page in site.values())
    for name, page in site.items():
        for address in page.loaded:
            parts = urlsplit(address)
            assert not parts.netloc, f"{name}: {address}"
            assert parts.scheme == "data" or (page.path.parent / unquote(parts.path)).is_file(), f"{name}: {address}"
    for style in site["index.html"].path.parent.rglob("*.css"):
        assert not re.search(r"""(url\(\s*['"]?|@import\s+['"]?)(https?:)?//""", style.read_text(encoding="utf-8")), style


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(site: dict[str, Page]) -> Iterator[str]:
    """Of a local server with the site."""
    handler = partial(Silent, directory=site["index.html"].path.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_a_browser_shows_pages_and_searches_without_another_server(address: str) -> None:
    asked, complaints = [], []
    with chromium() as browser:
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        for name in ("index.html", "models.html", "api/features.html"):
            page.goto(address + name)
        page.goto(address + "search.html?q=cosine")
        found = page.locator("#search-results li a").first
        found.wait_for()
        assert found.get_attribute("href").split("#")[0] in ("cli.html", "scale.html", "heads.html", "api/search.html")
    assert not [url for url in asked if not url.startswith((address, "data:"))]
    assert not complaints


def test_links_and_their_anchors_resolve(site: dict[str, Page]) -> None:
    root = site["index.html"].path.parent
    for name, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            assert target.is_file(), f"{name}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in site[str(target.relative_to(root))].ids, f"{name}: {link}"


def test_models_table_lists_all(site: dict[str, Page]) -> None:
    rows = [row for row in site["models.html"].rows if len(row) > 4]  # other tables are narrower
    expected = [(network.name, f"{network.parameters:,}", network.tag or "-") for network in list_networks()]
    assert [(row[0], row[1], row[4]) for row in rows] == expected


def test_every_recipe_is_there_as_its_file_opens(site: dict[str, Page]) -> None:
    for name in recipe_names():
        section = words(site["recipes.html"].sections[name.replace("_", "-")])
        comment = recipe_text(name).partition("\n\n")[0]
        assert not [line for line in comment.splitlines() if words(line.removeprefix("#")) not in section], name


def test_results_are_beside_the_papers(site: dict[str, Page]) -> None:
    rows = {row[0]: row[1:] for row in site["results.html"].rows if row}
    assert rows["imagenet_densenet264"][0] == "top-1 22.15, top-5 6.12 (single crop); top-1 20.80, top-5 5.29 (ten-crop)"
    assert set(rows) >= {name for name in recipe_names() if "the paper's protocol" in recipe_text(name)} - {
        "imagenet_densenet161"
    }
    run = rows["cifar10_densenet40_k12_ten_epochs"]
    assert rows["cifar10_densenet40_k12"][1].startswith(run[4])
    assert rows["cifar10_densenet_bc100_k12"][1] == "not measured"
