"""What a sweep needs of a node, looked up there: room in its cache, and the files of the models.

Imports neither Ray nor torch, for which every node would have to wait.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from tailsweep.clusters.nodes.probe import free_bytes
from tailsweep.trainables.errors import describe_error
from tailsweep.trainables.storage.cache import cache_folder, default_cache_dir

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SECONDS_OF_HUB = 5.0


class Room(TypedDict):
    """In a folder of the node."""

    folder: str
    free: int | None  # bytes; None: nothing tells
    lacking: int  # bytes of what the sweep will put there


class NodeNeeds(TypedDict):
    """What a sweep needs, as one node has it."""

    rooms: list[Room]  # the cache, and the folder of the features where that is another
    models: dict[str, str]  # why a model's files cannot be had, by its name; of the others nothing


def inspect_for_sweep(
    node_id: str,
    tokens: Mapping[str, int],
    features: Mapping[str, int],
    features_dir: str | None,
    models: Mapping[str, str | None],
) -> NodeNeeds:
    """Inspect this node's folders and models. Runs as a task on a node, or in the driver for its own.

    Args:
        tokens, features: bytes of the sweep's entries in the cache, by their keys.
        features_dir: the setting ``features.dir``.
        models: the models' names, each with the module that carries its files where it is installed.
    """
    cache = default_cache_dir()
    features_folder = cache_folder(features_dir)
    needed = {cache: 0} | {features_folder: 0}
    for folder, kind, entries in ((cache, "tokens", tokens), (features_folder, "features", features)):
        needed[folder] += sum(size for key, size in entries.items() if not (folder / kind / key).is_dir())
    rooms = [Room(folder=str(folder), free=free_bytes(folder), lacking=size) for folder, size in needed.items()]
    missing = {name: missing_model(name, module) for name, module in models.items()}
    return NodeNeeds(rooms=rooms, models={name: reason for name, reason in missing.items() if reason is not None})


def missing_model(name: str, module: str | None) -> str | None:
    """Return why the configuration and weights of a model cannot be found here, or None. Loads nothing."""
    if module is not None and importlib.util.find_spec(module) is not None:
        return None
    folder = Path(name)
    if folder.is_dir():
        there = {path.name for path in folder.iterdir()}
        if "config.json" in there and there & set(WEIGHTS):
            return None
        return "the folder has no config.json or no weights"
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        return "there is no such folder"
    return _missing_on_hub(name)


def _missing_on_hub(name: str) -> str | None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    def cached(file: str) -> bool:
        return isinstance(huggingface_hub.try_to_load_from_cache(name, file), str)

    try:
        if cached("config.json") and any(cached(file) for file in WEIGHTS):
            return None
        url = huggingface_hub.hf_hub_url(name, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=SECONDS_OF_HUB)
    except OfflineModeIsEnabled:
        return "it is not in the hub's cache there, and HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        return f"the hub refuses it: {describe_error(error)}"
    except Exception as error:  # whatever the hub's client makes of a network that is not there
        return f"it is not in the hub's cache there, and the hub cannot be reached ({type(error).__name__})"
    return None
