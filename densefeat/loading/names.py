"""Names of models, as far as they can be judged without a list of all models."""

import os

from densefeat.errors import UsageError


def check_model_name(name: str) -> None:
    """Raise UsageError for a name that can only be of a folder, which does not exist."""
    if "/" in name and not name.startswith("hf-hub:") and not os.path.exists(name):
        raise UsageError(f"model {name!r}: no such folder, and no model of that name")
