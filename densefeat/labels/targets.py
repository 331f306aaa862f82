"""What images are to be predicted as."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Task = Literal["single", "multi", "regression"]


@dataclass(frozen=True)
class Targets:
    """Of n rows. ``values``: single int64 ``(n,)``, multi bool ``(n, K)``, regression float64 ``(n,)``.

    ``classes``: K names, in the order of the values; none for regression.
    """

    task: Task
    classes: tuple[str, ...]
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> "Targets":
        """Those of some rows: positions, or a mask."""
        return replace(self, values=self.values[rows])
