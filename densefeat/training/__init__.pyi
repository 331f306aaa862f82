from .checkpoints import newest_checkpoint, remove_checkpoints, restore_checkpoint, save_checkpoint
from .classic import DecodedImages
from .data import MAX_GROUP, Split, TrainingData, labelled_positions, load_images, row_groups
from .device_data import DeviceImages, Failures, MicroBatch, refuse_rule
from .job import Trained, format_result, run_training, train
from .labelled import EncodedImages, LabelledImages, open_labelled
from .losses import Loss
from .pixels import make_pixel_rule, measure_training_images, read_recipe_stats
from .progress import Progress
from .recipe import Recipe, Run, check_run, refuse_if
from .recipe_files import load_recipe, read_recipe, recipe_names, recipe_text
from .sampling import Sampler, micro_batch_slices
from .scores import AnyScores, LabelScores, Scores, score, score_labels
from .state import Setup, State
from .worker_data import ImageDataset, TenCropGeometry, WorkerImages, make_mirrored_crops
from .world import World, join_world

__all__ = [
    "MAX_GROUP",
    "AnyScores",
    "DecodedImages",
    "DeviceImages",
    "EncodedImages",
    "Failures",
    "ImageDataset",
    "LabelScores",
    "LabelledImages",
    "Loss",
    "MicroBatch",
    "Progress",
    "Recipe",
    "Run",
    "Sampler",
    "Scores",
    "Setup",
    "Split",
    "State",
    "TenCropGeometry",
    "Trained",
    "TrainingData",
    "WorkerImages",
    "World",
    "check_run",
    "format_result",
    "join_world",
    "labelled_positions",
    "load_images",
    "load_recipe",
    "make_mirrored_crops",
    "make_pixel_rule",
    "measure_training_images",
    "micro_batch_slices",
    "newest_checkpoint",
    "open_labelled",
    "read_recipe",
    "read_recipe_stats",
    "recipe_names",
    "recipe_text",
    "refuse_if",
    "refuse_rule",
    "remove_checkpoints",
    "restore_checkpoint",
    "row_groups",
    "run_training",
    "save_checkpoint",
    "score",
    "score_labels",
    "train",
]
