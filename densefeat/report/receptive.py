"""Receptive field and stride, worked out from the modules alone."""

from dataclasses import dataclass

from timm.layers import BlurPool2d
from torch import nn

from densefeat.errors import UsageError
from densefeat.nets import CrossLayerDepthwise

_POINTWISE = (nn.BatchNorm2d, nn.ReLU, nn.Identity, nn.Dropout, CrossLayerDepthwise)


@dataclass(frozen=True)
class Field:
    """What one value of a map sees: ``size`` pixels a side of the image and its padding; neighbours are ``stride`` apart."""

    size: int = 1
    stride: int = 1

    def after(self, module: nn.Module) -> "Field":
        """Of a map that ``module`` makes of this one.

        The modules within are taken to follow each other. So they do on the longest way through a dense block, where each
        layer reads the one before it, and through a DelugeNet's. Raises UsageError for a module of other networks.
        """
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            return self.slid(_first(module.kernel_size), _first(module.stride), _first(getattr(module, "dilation", 1)))
        if isinstance(module, BlurPool2d):
            return self.slid(module.filt_size, module.stride)
        if isinstance(module, _POINTWISE):
            return self
        children = list(module.children())
        if not children:
            raise UsageError(f"{type(module).__name__}: what it does to the receptive field is not known")
        field = self
        for child in children:
            field = field.after(child)
        return field

    def slid(self, kernel: int, stride: int, dilation: int = 1) -> "Field":
        return Field(self.size + dilation * (kernel - 1) * self.stride, self.stride * stride)


def _first(value: int | tuple[int, ...]) -> int:
    """Of what torch keeps as one number or as one for each direction, which are equal in these networks."""
    return value if isinstance(value, int) else value[0]
