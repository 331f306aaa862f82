"""Features with targets that they predict in part: classes, several labels a row, or numbers."""

import numpy as np

from densefeat.labels.targets import Targets, Task


def make_data(task: Task, rows: int = 400, features: int = 12, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, Targets]:
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(rows, features)) * np.arange(1, features + 1) ** -0.7
    x = (latent @ np.linalg.qr(generator.normal(size=(features, features)))[0] + 0.5).astype(np.float32)
    answers = latent @ (2.5 * generator.normal(size=(features, classes))) + generator.gumbel(size=(rows, classes))
    names = tuple(f"class {k}" for k in range(classes))
    if task == "single":
        return x, Targets(task, names, answers.argmax(1))
    if task == "multi":
        return x, Targets(task, names, answers > 1.5)
    return x, Targets(task, (), 40 + 5 * answers[:, 0])


def validation_mask(rows: int, share: float = 0.25, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).permutation(rows) < share * rows
