"""The EXIF orientation: how an image that a camera stored lying or upside down is turned upright."""

from PIL import Image

ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8, without decoding pixels; 1 where there is none that can be read."""
    try:
        value = Image.Image.getexif(image).get(ORIENTATION_TAG)  # that of PNGs would first decode the pixels
    except Exception:  # damaged EXIF fails in many ways
        return 1
    return value if isinstance(value, int) else 1


def swaps_sides(orientation: int) -> bool:
    """Check whether an upright image's width is the height of the stored one."""
    return orientation in (5, 6, 7, 8)
