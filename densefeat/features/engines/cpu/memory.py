"""Maps that every pass uses again, so that a pass allocates none of the large ones."""

import torch

_GROUP_BYTES = 7 * 2**20  # more leaves the caches, fewer images do not keep the cores busy


class Memory:
    """Named storages of one type, each as large as the largest map that was asked of it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.storages: dict[str, torch.Tensor] = {}

    def maps(self, name: str, n: int, channels: int, height: int, width: int) -> torch.Tensor:
        """``(n, channels, height, width)`` in channels_last order, of any content: the last map of that name is lost."""
        elements = n * channels * height * width
        if name not in self.storages or self.storages[name].numel() < elements:
            self.storages[name] = torch.empty(elements, dtype=self.dtype)
        return self.storages[name][:elements].view(n, height, width, channels).permute(0, 3, 1, 2)

    def release(self, most: int) -> None:
        """Let go of all where it is more than so many bytes: the room of one large image is not kept for ever."""
        if sum(storage.nbytes for storage in self.storages.values()) > most:
            self.storages.clear()

    def like(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = maps.shape
        return self.maps(name, n, channels, height, width)


def groups(maps: torch.Tensor, channels: int) -> tuple[torch.Tensor, ...]:
    """The maps of a few images at a time: as many as make ``GROUP_BYTES`` with that many channels."""
    image_bytes = channels * maps.shape[2] * maps.shape[3] * maps.element_size()
    return maps.split(max(1, _GROUP_BYTES // max(1, image_bytes)))


def spatial_mean(maps: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` in channels_last order to ``(N, C)``, summed in float32."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2).mean(1, dtype=torch.float32)
