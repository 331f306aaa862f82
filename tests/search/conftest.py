"""Vectors with neighbours that search can find."""

import numpy as np
import pytest


@pytest.fixture
def clustered() -> np.ndarray:
    """float32 ``(2000, 24)``, not negative, as embeddings are: 100 clusters of twenty."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((100, 24))
    return np.maximum(np.repeat(centres, 20, 0) + 0.2 * generator.standard_normal((2000, 24)), 0).astype(np.float32)
