"""The scores of images as one HTML page, the highest score first."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from densefeat.anomaly.detector import Detector
from densefeat.base import ImageCard, Section, Table, is_page, render_page, save_page
from densefeat.overlay import view_whole
from densefeat.store import Store, encode_thumbnail, make_pictures, read_entries

_CARDS = 100
_EDGE = 200  # pixels of an image and of its heat map
_GAP = 4
_TITLES = {"image_auroc": "AUROC of images", "pixel_auroc": "AUROC of pixels", "pro": "PRO up to 30 % false pixels"}

Draw = Callable[[Image.Image, dict[str, np.ndarray]], Image.Image]


def write_page(
    path: Path,
    store: Store,
    images: str | Path,
    scores: np.ndarray,
    detector: Detector,
    metrics: dict[str, float],
    draw: Draw,
) -> None:
    """Write the page: each of the 100 images with the highest scores, beside its heat map.

    ``scores``: float32 ``(rows,)`` of the store; ``draw``: lays the store's column ``map`` over an image. An image that is not
    there any more is a grey box. Raises OutputError where the page cannot be written.
    """
    alarms = detector.alarms
    worst = np.argsort(-scores, kind="stable")[:_CARDS]
    bad, p_values = alarms.judge(scores[worst]), alarms.p_values(scores[worst])
    entries = read_entries(store, worst)
    views, problem = make_pictures(store.provenance, entries.values(), images, partial(view_whole, edge=_EDGE))
    pictures = {}
    for row, entry in entries.items():
        if (image := views.get(entry)) is not None:
            heat = draw(image, {"map": store.read("map", row, row + 1)[0]})
            pictures[entry] = encode_thumbnail(_put_beside(image, heat), 2 * _EDGE + _GAP)
    cards = [
        ImageCard(
            f"{scores[row]:.4g}",
            remark=f" · p {p_value:.3g}{' · anomalous' if is_bad else ''}",
            picture=pictures.get(entries[row]),
            **vars(entries[row]),
        )
        for row, is_bad, p_value in zip(worst.tolist(), bad, p_values, strict=True)
    ]
    low, high = (100 * end for end in alarms.interval)
    notes = [
        f"{len(scores):,} images, of which {int(alarms.judge(scores).sum()):,} have a score above {alarms.threshold:.4g}.",
        f"By {len(alarms.held_out):,} held-out good images, {100 * alarms.expected_rate:.2g} % of good images are expected"
        f" above it (asked for: {100 * alarms.rate:g} %; 95 % interval {low:.2g} to {high:.2g} %).",
    ]
    notes += [f"Images could not be shown: {problem}"] if problem else []
    sections = []
    if metrics:
        rows = [(_TITLES[name], f"{100 * value:.2f} %") for name, value in metrics.items()]
        sections.append(Section("Compared with masks", [Table(("metric", "value"), rows)]))
    shown = f"the {_CARDS} highest of {len(scores):,}" if len(scores) > _CARDS else "highest first"
    sections.append(Section(f"Scores, {shown}", cards))
    save_page(path, render_page(f"Anomalies by {detector.provenance.get('model', 'a network')}", notes, sections), is_page)


def _put_beside(image: Image.Image, heat: Image.Image) -> Image.Image:
    both = Image.new("RGB", (2 * image.width + _GAP, image.height), "white")
    both.paste(image, (0, 0))
    both.paste(heat, (image.width + _GAP, 0))
    return both
