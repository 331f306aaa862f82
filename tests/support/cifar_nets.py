"""DenseNets for CIFAR with the key names of andreasveit's and bamos' programs, written from the paper's section 3."""

import torch
import torch.nn.functional as F
from torch import nn


class _Layer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))], 1)


class _Transition(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels // 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class _Block(nn.Module):
    """A block as andreasveit's: its layers are one attribute."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layer = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class CifarNet(nn.Module):
    """DenseNet-BC of depth 6·``layers`` + 4. ``style``: ``andreasveit`` (block1.layer.0) or ``bamos`` (dense1.0)."""

    def __init__(self, style: str, layers: int = 16, growth: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.order = []
        for i in range(1, 4):
            block: nn.Module = nn.Sequential(*(_Layer(channels + j * growth, growth) for j in range(layers)))
            channels += layers * growth
            if style == "andreasveit":
                block = _Block(block)  # type: ignore[arg-type]
            names = {f"block{i}" if style == "andreasveit" else f"dense{i}": block}
            if i < 3:
                names[f"trans{i}"] = _Transition(channels)
                channels //= 2
            for name, module in names.items():
                self.add_module(name, module)
                self.order.append(name)
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for name in self.order:
            x = getattr(self, name)(x)
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))
