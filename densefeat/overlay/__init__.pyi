from .drawing import enlarge_maps, lay_classes, lay_heat, make_palette
from .files import find_stranger, name_files, save_overlays
from .views import view_input, view_whole

__all__ = [
    "enlarge_maps",
    "find_stranger",
    "lay_classes",
    "lay_heat",
    "make_palette",
    "name_files",
    "save_overlays",
    "view_input",
    "view_whole",
]
