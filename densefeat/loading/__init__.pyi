from .by_name import create_model, describe_source, find_config, make_provenance, weights_file
from .catalogue import Network, list_networks
from .headed import HeadedNet, load_run
from .run_files import CONFIG, OWN, WEIGHTS, RunConfig, load_backbone, load_whole, make_network, names_folder, read_run

__all__ = [
    "CONFIG",
    "OWN",
    "WEIGHTS",
    "HeadedNet",
    "Network",
    "RunConfig",
    "create_model",
    "describe_source",
    "find_config",
    "list_networks",
    "load_backbone",
    "load_run",
    "load_whole",
    "make_network",
    "make_provenance",
    "names_folder",
    "read_run",
    "weights_file",
]
