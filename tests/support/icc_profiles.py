"""Small ICC profiles, written from primaries and curves, and what their colours are in sRGB, worked out by numpy.

The layout is that of ICC.1:2001-04 (version 2.4), of ICC.1:2010 for parametric curves.
"""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
D65 = (0.3127, 0.3290)
PRIMARIES = {  # x, y of red, green and blue, and of white
    "srgb": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65),
    "p3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65),
    "prophoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)),
    "swapped": ((0.30, 0.60), (0.64, 0.33), (0.15, 0.06), D65),  # sRGB with red and green exchanged
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def find_matrix(space: str) -> np.ndarray:
    """Return the matrix from linear colours of a space to XYZ under D50: its columns are the primaries."""
    *primaries, white = PRIMARIES[space]
    columns = np.array([_to_xyz(*place) for place in primaries]).T
    white_xyz = _to_xyz(*white)
    columns = columns * np.linalg.solve(columns, white_xyz)
    cones = (_BRADFORD @ np.array(D50)) / (_BRADFORD @ white_xyz)
    return np.linalg.inv(_BRADFORD) @ np.diag(cones) @ _BRADFORD @ columns


def _to_xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])


def decode_srgb(values: np.ndarray) -> np.ndarray:
    """Return the light, 0 to 1, of sRGB values 0 to 255 (IEC 61966-2-1)."""
    values = values / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encode_srgb(light: np.ndarray) -> np.ndarray:
    """Return the sRGB values 0 to 255 of light."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def convert_by_hand(pixels: np.ndarray, space: str, gamma: float | None = None) -> np.ndarray:
    """Convert pixels ``(…, 3)`` of a space to sRGB as floats; ``gamma`` None: the curve of sRGB."""
    light = decode_srgb(pixels) if gamma is None else (pixels / 255) ** gamma
    return encode_srgb(light @ (np.linalg.inv(find_matrix("srgb")) @ find_matrix(space)).T)


def convert_grey_by_hand(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """Convert greys 0 to 255 of a curve to those of sRGB."""
    return encode_srgb((pixels / 255) ** gamma)


def convert_cmyk_by_hand(inks: np.ndarray) -> np.ndarray:
    """Convert inks ``(…, 4)``, 0 to 255, to sRGB by the table of :func:`make_cmyk_profile`."""
    xyz = _from_lab(_mix_inks(inks.reshape(-1, 4) / 255))
    return encode_srgb(xyz @ np.linalg.inv(find_matrix("srgb")).T).reshape(*inks.shape[:-1], 3)


def make_rgb_profile(space: str, gamma: float | None = None) -> bytes:
    """Make a profile of three primaries and one curve."""
    curve = _SRGB_CURVE if gamma is None else _make_gamma_curve(gamma)
    columns = find_matrix(space).T
    tags = {b"rXYZ": _make_xyz(columns[0]), b"gXYZ": _make_xyz(columns[1]), b"bXYZ": _make_xyz(columns[2])}
    return make_profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def make_grey_profile(gamma: float) -> bytes:
    return make_profile(b"GRAY", {b"kTRC": _make_gamma_curve(gamma)})


def make_cmyk_profile() -> bytes:
    """Make a profile of a table with two points an ink, between which Lab changes evenly."""
    lab = _mix_inks(np.array(np.meshgrid(*[[0, 1]] * 4, indexing="ij")).reshape(4, -1).T)
    table = np.clip(np.rint(np.stack([lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], 1)), 0, 65535)
    line = np.array([0, 65535], ">u2").tobytes()
    head = b"mft2" + bytes(4) + struct.pack(">BBBx", 4, 3, 2) + struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    lut = head + struct.pack(">HH", 2, 2) + 4 * line + table.astype(">u2").tobytes() + 3 * line
    return make_profile(b"CMYK", {b"A2B0": lut, b"A2B1": lut}, kind=b"prtr", connection=b"Lab ")


def _mix_inks(shares: np.ndarray) -> np.ndarray:
    """Return the colours of inks, 0 to 1 ``(n, 4)``, in Lab ``(n, 3)``: white without any, black with all."""
    return np.array([100, 0, 0]) - shares @ np.array([[17, 40, 20], [17, -40, 20], [16, 0, -40], [50, 0, 0]])


def _from_lab(lab: np.ndarray) -> np.ndarray:
    y = (lab[:, 0] + 16) / 116
    f = np.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], 1)
    return np.array(D50) * np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2)


def make_profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", connection: bytes = b"XYZ ") -> bytes:
    """Put tags behind a header, with a description and the white point."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">L", 5) + b"test\0" + bytes(78), b"wtpt": _make_xyz(D50), **tags}
    place = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">L", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">LL", place + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    head = struct.pack(">L4xL", place + len(content), 0x02400000) + kind + space + connection
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3l", *_fix(D50))
    return head.ljust(128, b"\0") + table + content


def _fix(numbers: object) -> list[int]:
    return np.rint(65536 * np.asarray(numbers)).astype(int).tolist()


def _make_xyz(numbers: object) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3l", *_fix(numbers))


def _make_gamma_curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">LH", 1, round(256 * gamma)) + bytes(2)


_SRGB_CURVE = b"curv" + bytes(4) + struct.pack(">L", 1024)
_SRGB_CURVE += np.rint(65535 * decode_srgb(np.linspace(0, 255, 1024))).astype(">u2").tobytes()
