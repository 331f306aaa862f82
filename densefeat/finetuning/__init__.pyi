from .recipe import FineTuning, load_finetuning
from .setup import finetune

__all__ = [
    "FineTuning",
    "finetune",
    "load_finetuning",
]
