"""The outputs of any network as columns that an extraction writes and resumes like features."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from densefeat.images import Preprocessing


def identify(network: nn.Module, content: bytes) -> None:
    """Make the stores of a network differ from those of the same network with other ``content``, such as another probe's hash.

    A store is identified by the tensors of its network: one is added.
    """
    network.register_buffer("identity", torch.frombuffer(bytearray(content), dtype=torch.uint8).float())


class ColumnsNet(nn.Module):
    """A wrapper that makes a network's outputs look like the feature maps of a timm model.

    Args:
        recorded_name: The model's name in the store.
        network: Turns images ``(N, C, H, W)`` into vectors ``(N, K)`` or maps ``(N, K, h, w)``, by column name; or, if there is
            one column, into that tensor. If it is a module, its tensors identify it in the store, so that a job with another
            network does not resume there.
        channels: K by column name, in the order of the columns.
        preprocessing: That of the images. Extract with ``pool="none"`` to keep maps; vectors are maps of one position.
        precision: That of the features which ``network`` reads, for the store to record; None: that of the extraction.
    """

    def __init__(
        self,
        recorded_name: str,
        network: Callable[[torch.Tensor], Mapping[str, torch.Tensor] | torch.Tensor],
        channels: Mapping[str, int],
        preprocessing: Preprocessing,
        precision: str | None = None,
    ) -> None:
        super().__init__()
        self.recorded_name, self.recorded_precision, self.network = recorded_name, precision, network
        facts = preprocessing.to_json()
        size = facts.pop("size")
        self.pixel_rule, self.in_chans = preprocessing.pixels, preprocessing.pixels.in_chans
        self.pretrained_cfg = facts | {"input_size": (self.in_chans, size, size)}
        self.feature_info = [{"num_chs": count, "reduction": size, "module": name} for name, count in channels.items()]
        for name in channels:
            self.add_module(name, nn.Identity())  # where the extraction's hooks read

    def forward(self, x: torch.Tensor) -> None:
        found = self.network(x)
        for entry in self.feature_info:
            values = found if isinstance(found, torch.Tensor) else found[entry["module"]]
            self.get_submodule(entry["module"])(values if values.ndim == 4 else values[:, :, None, None])
