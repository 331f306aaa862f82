"""The map in a real Chromium: it draws, tells, selects, and runs and asks for nothing but its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from densefeat.map.job import write_map
from densefeat.store.reader import open_store
from support.browser import Opened, chromium, opened
from support.probes import write_probe_store

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=document.body.dataset.hacked=1>.png"
ENDING = "</script><script>document.body.dataset.hacked=1</script>"
COLOURS = {"a/red.png": (210, 30, 30), "a/green.png": (30, 160, 40), HOSTILE: (40, 60, 200)}
LABELS = ["warm", "<b>cold</b>", ENDING, None]
# of block1 on a line, of block2 the corners of a square; the last has no image
FIRST = [[0, 0], [1, 0], [2, 0], [9, 0]]
SECOND = [[0, 0], [8, 0], [0, 8], [8, 8]]
PLACES = """() => {
    const view = Bokeh.index.get_by_id(Bokeh.documents[0].roots()[0].id), frame = view.frame;
    const { x, y, colour } = view.model.renderers[0].data_source.data;
    const box = document.getElementById("plot").getBoundingClientRect();
    return Array.from(x, (_, i) => [box.x + frame.x_scale.compute(x[i]), box.y + frame.y_scale.compute(y[i]), colour[i]]);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def map_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("map")
    for name, colour in COLOURS.items():
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 40), colour).save(root / "images" / name)
    features = {"block1": np.array(FIRST, np.float32), "block2": np.array(SECOND, np.float32)}
    keys = [*COLOURS, "gone.png"]
    store = write_probe_store(root / "store.parquet", LABELS, features, keys)
    write_map(open_store(store), root / "map.html", images=str(root / "images"), cluster_count=2)
    return root / "map.html"


@pytest.fixture(params=[True, False], ids=["gpu", "no gpu"])
def seen(browser: Browser, map_file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """After every test, check that the page requested nothing, reported no error and ran only its own scripts."""
    with opened(browser, map_file, gpu=request.param) as made:
        yield made
        assert made.requests == [map_file.as_uri()]
        assert made.complaints == []
        assert made.page.evaluate("document.body.dataset.hacked") is None


def settle(page: Page) -> None:
    """Two frames: drawn, and on the screen."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hover(page: Page, point: int) -> None:
    x, y, _ = page.evaluate(PLACES)[point]
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    page.wait_for_selector("#tip:not([hidden])")


def pixel_at(page: Page, x: float, y: float, tmp_path: Path) -> tuple[int, ...]:
    page.screenshot(path=tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        return shot.convert("RGB").getpixel((round(x), round(y)))


def rgb(text: str) -> tuple[int, ...]:
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))


@pytest.mark.parametrize("gpu", [True, False])
def test_webgl_draws_where_it_is_fast(browser: Browser, map_file: Path, gpu: bool) -> None:
    with opened(browser, map_file, gpu=gpu) as seen:
        assert seen.page.evaluate("Bokeh.documents[0].roots()[0].output_backend") == ("webgl" if gpu else "canvas")
        views = "[...Bokeh.index.get_by_id(Bokeh.documents[0].roots()[0].id).renderer_views.values()]"
        drawn = f"{views}.some((view) => view.has_webgl === true)"
        assert seen.page.evaluate(drawn) is gpu


def test_points_are_drawn_where_they_should_be(seen: Opened, tmp_path: Path) -> None:
    page = seen.page
    settle(page)
    places = page.evaluate(PLACES)
    assert len(places) == 4
    for x, y, colour in places[:3]:
        drawn = pixel_at(page, x, y, tmp_path)
        wanted = np.array(rgb(colour)) * 0.85 + 255 * 0.15
        assert np.abs(np.array(drawn) - wanted).max() < 12
    assert pixel_at(page, places[0][0] + 40, places[0][1], tmp_path) == (255, 255, 255)


def test_both_axes_have_one_scale(seen: Opened) -> None:
    corners = np.array([place[:2] for place in seen.page.evaluate(PLACES)])
    sides = np.linalg.norm(corners[[1, 2]] - corners[0], axis=1)
    assert sides[0] == pytest.approx(sides[1], rel=0.02)


@pytest.mark.parametrize("point", range(3))
def test_hover_shows_the_thumbnail_and_what_is_known(seen: Opened, point: int) -> None:
    page, (name, colour) = seen.page, list(COLOURS.items())[point]
    hover(page, point)
    page.wait_for_selector("#tip canvas:not([hidden])")
    size = page.evaluate("(() => { const c = document.querySelector('#tip canvas'); return [c.width, c.height]; })()")
    assert size == [128, 64]
    shown = page.evaluate("Array.from(document.querySelector('#tip canvas').getContext('2d').getImageData(64, 32, 1, 1).data)")
    assert np.abs(np.array(shown[:3]) - colour).max() < 12
    lines = page.locator("#tip-text div").all_text_contents()
    assert lines[:2] == [name, f"label: {LABELS[point]}"]
    assert lines[2].startswith("cluster: ")


def test_without_an_image_hover_tells_the_rest(seen: Opened) -> None:
    page = seen.page
    hover(page, 0)
    page.wait_for_selector("#tip canvas:not([hidden])")
    hover(page, 3)
    page.wait_for_selector("#tip canvas", state="hidden")
    assert page.locator("#tip-text div").first.text_content() == "gone.png"
    page.mouse.move(5, 5)
    page.wait_for_selector("#tip", state="hidden")


def test_block_and_colour_are_chosen(seen: Opened) -> None:
    page = seen.page
    before = page.evaluate(PLACES)
    assert page.locator("#block").input_value() == "block2"
    page.select_option("#block", "block1")
    settle(page)
    after = page.evaluate(PLACES)
    heights = [y for _, y, _ in after]
    assert max(heights) - min(heights) < 1 < np.ptp([y for _, y, _ in before])
    assert [colour for *_, colour in after] == [colour for *_, colour in before]
    assert page.locator("#legend .name").all_text_contents() == [*sorted(LABELS[:3], key=str), "no label"]
    page.select_option("#colour", "cluster of block2")
    assert page.locator("#legend .name").all_text_contents() == ["1", "2"]
    assert len({colour for *_, colour in page.evaluate(PLACES)}) == 2


def download(page: Page, tmp_path: Path) -> list[str]:
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "list.txt")
    assert download.value.suggested_filename == "selected.txt"
    return (tmp_path / "list.txt").read_text().splitlines()


def test_search(seen: Opened, tmp_path: Path) -> None:
    page = seen.page
    assert page.locator("#count").text_content() == "4 points"
    assert page.is_disabled("#download")
    page.fill("#search", "A/")
    assert page.locator("#count").text_content() == "2 selected"
    assert download(page, tmp_path) == ["a/red.png", "a/green.png"]
    page.fill("#search", "COLD")  # a label
    assert download(page, tmp_path) == ["a/green.png"]
    page.fill("#search", "onerror")
    assert download(page, tmp_path) == [HOSTILE]
    page.fill("#search", "no such thing")
    assert page.locator("#count").text_content() == "no match"
    assert {colour for *_, colour in page.evaluate(PLACES)} == {"#9a9a9a33"}
    assert page.is_disabled("#download")
    page.click("#clear")
    assert page.locator("#count").text_content() == "4 points"
    assert len({colour for *_, colour in page.evaluate(PLACES)}) > 1


def drag_box(page: Page) -> None:
    """Over the left side of the square."""
    page.locator(".bk-tool-icon-box-select").click()
    (x0, y0, _), _, (x2, y2, _), _ = page.evaluate(PLACES)
    left, right = min(x0, x2) - 15, max(x0, x2) + 15
    top, bottom = min(y0, y2) - 12, max(y0, y2) + 12
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(right, bottom, steps=5)
    page.mouse.up()


def drag_lasso(page: Page) -> None:
    page.locator(".bk-tool-icon-lasso-select").click()
    x, y, _ = page.evaluate(PLACES)[0]
    corners = [(x - 30, y - 10), (x + 30, y - 10), (x + 30, y + 12), (x - 30, y + 12), (x - 30, y - 10)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()


@pytest.mark.parametrize(("drag", "wanted"), [(drag_box, ["a/red.png", HOSTILE]), (drag_lasso, ["a/red.png"])])
def test_a_region_is_downloaded(seen: Opened, tmp_path: Path, drag: Callable[[Page], None], wanted: list[str]) -> None:
    page = seen.page
    drag(page)
    page.wait_for_selector("#download:not([disabled])")
    assert page.locator("#count").text_content() == f"{len(wanted)} selected"
    assert download(page, tmp_path) == wanted
    page.select_option("#block", "block1")  # the other block shows the same ones
    assert download(page, tmp_path) == wanted


def test_the_legend_selects(seen: Opened, tmp_path: Path) -> None:
    seen.page.locator("#legend button", has_text="warm").click()
    assert download(seen.page, tmp_path) == ["a/red.png"]


@pytest.mark.parametrize("rows", [1, 2])
def test_very_few_rows(browser: Browser, tmp_path: Path, rows: int) -> None:
    features = {"block1": np.eye(rows, 3, dtype=np.float32)}
    store = write_probe_store(tmp_path / "store.parquet", None, features, images=str(tmp_path))
    write_map(open_store(store), tmp_path / "map.html")
    with opened(browser, tmp_path / "map.html") as seen:
        settle(seen.page)
        hover(seen.page, 0)
        assert seen.page.locator("#tip-text div").first.text_content() == "0.jpg"
        assert seen.complaints == []


def test_numbers_have_a_colour_bar(browser: Browser, tmp_path: Path) -> None:
    features = {"block1": np.random.default_rng(0).standard_normal((4, 3), np.float32)}
    store = write_probe_store(tmp_path / "store.parquet", ["0.5", "-1", None, "2"], features, images=str(tmp_path))
    write_map(open_store(store), tmp_path / "map.html")
    with opened(browser, tmp_path / "map.html", width=600) as seen:
        assert seen.page.locator("#legend .ends span").all_text_contents() == ["-1", "2"]
        colours = [colour for *_, colour in seen.page.evaluate(PLACES)]
        assert colours[1::2] == ["#00204C", "#FFE945"]
        assert colours[2] == "#9a9a9a55"
        assert seen.complaints == []


def test_a_script_in_a_name_could_not_run_either(browser: Browser, map_file: Path) -> None:
    """Were a name to become HTML, the page's policy would stop it."""
    with opened(browser, map_file) as seen:
        seen.page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=document.body.dataset.hacked=1>')"
        )
        settle(seen.page)
        assert seen.page.evaluate("document.body.dataset.hacked") is None
        assert any("Content Security Policy" in complaint for complaint in seen.complaints)
