from .data import open_own_data
from .recipe import AnyRecipe, FineTuning, check_finetuning, mixes
from .stages import Stages, parameter_groups, set_trained, stages_of, trained_stages
from .start import own_preprocessing, start_from_probe

__all__ = [
    "AnyRecipe",
    "FineTuning",
    "Stages",
    "check_finetuning",
    "mixes",
    "open_own_data",
    "own_preprocessing",
    "parameter_groups",
    "set_trained",
    "stages_of",
    "start_from_probe",
    "trained_stages",
]
