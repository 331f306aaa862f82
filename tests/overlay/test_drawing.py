"""Maps made larger, palettes, and masks over images."""

import numpy as np
from PIL import Image

from densefeat.overlay import enlarge_maps, lay_classes, make_palette


def test_maps_are_interpolated_between_the_centres_of_positions() -> None:
    maps = np.array([[[0.0, 8.0]]], np.float32)
    large = enlarge_maps(maps, 1, 8)[0, 0]  # centres of positions at 2 and 6, of pixels at 0.5, 1.5, …
    np.testing.assert_allclose(large, [0, 0, 1, 3, 5, 7, 8, 8])


def test_a_palette_has_a_colour_for_each_class() -> None:
    palette = make_palette(21)
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]  # as PASCAL VOC's
    assert len({tuple(colour) for colour in make_palette(256).tolist()}) == 256


def test_a_black_class_leaves_the_image() -> None:
    image = Image.new("RGB", (3, 2), (100, 100, 100))
    mask = np.array([[0, 1, 0], [0, 0, 2]])
    drawn = np.asarray(lay_classes(image, mask, make_palette(3)))
    assert (drawn != 100).any(2).tolist() == (mask > 0).tolist()
    drawn = np.asarray(lay_classes(image, mask, make_palette(256)[[7, 0, 9]]))
    assert (drawn != 100).any(2).tolist() == (mask != 1).tolist()
