"""The papers' top-1 errors, in per cent, and the size and arithmetic of those networks.

Sources: DenseNet, arXiv 1608.06993v5, tables 2 and 3 (single crop of 224); DelugeNets, arXiv 1611.05552. "+": shift and mirror
augmentation.
"""

from dataclasses import dataclass

from densefeat.nets import VARIANTS

_CLASSES = {"CIFAR-10+": 10, "CIFAR-100+": 100, "ImageNet": 1000}
_DATA = {"cifar": ("CIFAR-10+", "CIFAR-100+"), "imagenet": ("ImageNet",)}  # by the networks' stem
_SIZES = {"CIFAR-10+": 32, "CIFAR-100+": 32, "ImageNet": 224}
_ERRORS = {
    "densefeat_densenet40_k12": {"CIFAR-10+": 5.24, "CIFAR-100+": 24.42},
    "densefeat_densenet100_k12": {"CIFAR-10+": 4.10, "CIFAR-100+": 20.20},
    "densefeat_densenet100_k24": {"CIFAR-10+": 3.74, "CIFAR-100+": 19.25},
    "densefeat_densenet_bc100_k12": {"CIFAR-10+": 4.51, "CIFAR-100+": 22.27},
    "densefeat_densenet_bc250_k24": {"CIFAR-10+": 3.62, "CIFAR-100+": 17.60},
    "densefeat_densenet_bc190_k40": {"CIFAR-10+": 3.46, "CIFAR-100+": 17.18},
    "densefeat_delugenet146": {"CIFAR-10+": 3.98, "CIFAR-100+": 19.72},
    "densefeat_delugenet218": {"CIFAR-10+": 3.88, "CIFAR-100+": 19.31},
    "densefeat_wide_delugenet146": {"CIFAR-10+": 3.76, "CIFAR-100+": 19.02},
    "densefeat_densenet121": {"ImageNet": 25.02},
    "densefeat_densenet169": {"ImageNet": 23.80},
    "densefeat_densenet201": {"ImageNet": 22.58},
    "densefeat_densenet264": {"ImageNet": 22.15},
    "densefeat_delugenet92": {"ImageNet": 22.05},
    "densefeat_delugenet104": {"ImageNet": 21.86},
    "densefeat_delugenet122": {"ImageNet": 21.53},
}
# The number of features that the classifier reads; parameters and MACs of one image before the classifier, at _SIZES. They are
# kept because computing them for the largest networks takes seconds; a test computes them again.
_COSTS = {
    "densefeat_densenet40_k12": (448, 1_015_232, 264_808_448),
    "densefeat_densenet100_k12": (1168, 6_967_952, 1_769_504_768),
    "densefeat_densenet100_k24": (2320, 27_225_872, 6_889_324_544),
    "densefeat_densenet_bc100_k12": (342, 765_732, 287_926_272),
    "densefeat_densenet_bc250_k24": (1734, 15_307_056, 5_418_768_384),
    "densefeat_densenet_bc190_k40": (2190, 25_602_520, 9_301_923_840),
    "densefeat_delugenet146": (256, 6_683_680, 704_593_920),
    "densefeat_delugenet218": (256, 9_979_168, 1_046_331_392),
    "densefeat_wide_delugenet146": (448, 20_146_168, 2_139_992_064),
    "densefeat_densenet121": (1024, 6_953_856, 2_833_137_664),
    "densefeat_densenet169": (1664, 12_484_480, 3_358_179_328),
    "densefeat_densenet201": (1920, 18_092_928, 4_289_445_888),
    "densefeat_densenet264": (2688, 30_648_704, 5_748_965_376),
    "densefeat_delugenet92": (1024, 42_379_072, 5_875_358_720),
    "densefeat_delugenet104": (1024, 50_328_896, 6_547_165_184),
    "densefeat_delugenet122": (1024, 62_595_392, 7_555_351_552),
}


@dataclass(frozen=True)
class Point:
    """A network's accuracy on a data set, and its size.

    Attributes:
        top1: Per cent.
        macs: Multiply-adds for one image.
        papers: Whether the accuracy is a paper's and was not measured with densefeat.
        where: The paper, or where the accuracy was measured.
    """

    network: str
    data: str
    top1: float
    parameters: int
    macs: int
    papers: bool
    where: str


def published_points(stem: str) -> list[Point]:
    """Return the papers' points for networks with a stem, ``"cifar"`` or ``"imagenet"``, with the sizes counted here."""
    return [
        _published_point(name, data, errors[data]) for data in _DATA[stem] for name, errors in _ERRORS.items() if data in errors
    ]


def _published_point(name: str, data: str, error: float) -> Point:
    features, parameters, macs = _COSTS[name]
    classes = _CLASSES[data]
    where = "arXiv 1611.05552" if "deluge" in name else "arXiv 1608.06993"
    return Point(
        name, data, round(100 - error, 2), parameters + classes * (features + 1), macs + classes * features, True, where
    )


def find_stem(architecture: str) -> str:
    """Return the stem of a network: ``"cifar"`` or ``"imagenet"``."""
    _, structure = VARIANTS.get(architecture, (None, {}))
    return str(structure.get("stem_type", "imagenet"))
