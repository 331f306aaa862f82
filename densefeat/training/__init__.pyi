from .checkpoints import load_checkpoint, newest_whole, save_checkpoint
from .classic import Arrays
from .data import MAX_GROUP, Split, TrainingData, groups_of, labelled_positions, prepared
from .device_data import DeviceImages, Failures, Part
from .job import report, train
from .labelled import Encoded, Labelled, group_sizes, open_labelled
from .progress import Progress
from .recipe import Recipe, Run, check_run, refuse
from .recipe_files import load_finetuning, load_recipe, recipe_names, recipe_text
from .run_folder import RECIPE, RESULTS
from .sampling import Sampler, rank_parts
from .scores import AnyScores, LabelScores, Scores, score, score_labels
from .state import State
from .worker_data import Images, TenCropGeometry, WorkerImages
from .world import World, join_world, own_device

__all__ = [
    "MAX_GROUP",
    "RECIPE",
    "RESULTS",
    "AnyScores",
    "Arrays",
    "DeviceImages",
    "Encoded",
    "Failures",
    "Images",
    "LabelScores",
    "Labelled",
    "Part",
    "Progress",
    "Recipe",
    "Run",
    "Sampler",
    "Scores",
    "Split",
    "State",
    "TenCropGeometry",
    "TrainingData",
    "WorkerImages",
    "World",
    "check_run",
    "group_sizes",
    "groups_of",
    "join_world",
    "labelled_positions",
    "load_checkpoint",
    "load_finetuning",
    "load_recipe",
    "newest_whole",
    "open_labelled",
    "own_device",
    "prepared",
    "rank_parts",
    "recipe_names",
    "recipe_text",
    "refuse",
    "report",
    "save_checkpoint",
    "score",
    "score_labels",
    "train",
]
