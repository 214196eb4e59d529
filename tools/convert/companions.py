"""The files beside the weights: config.json and, for text encoders, the tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import LFS_HINT, is_lfs_pointer, parse_json, read_json, start_of, write_json

from .kinds import Kind
from .tensors import Content

CONFIG_NAME = "config.json"
WANTED = "a JSON object, the config of a model"
EMA_STATE = (  # diffusers' EMAModel writes its own state into the config.json of the averaged model
    *("decay", "min_decay", "inv_gamma", "power", "use_ema_warmup"),
    *("optimization_step", "update_after_step", "foreach"),
)


def find_config(given: Path | None, content: Content, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The model's config and where it is from: `given`, the tensors themselves, beside the source, in the
    checkpoint, or already in `folder`, a destination that is a directory.

    Raises:
        InputError: not a JSON object, or a given file that is not there.
    """
    if given is None and content.config is not None:
        return content.config, "from the shapes of the weights"
    if given is not None and not given.is_file():
        raise InputError(f"--config {given}: no such file; give the config.json of the model")
    beside = given or content.files[0].parent / CONFIG_NAME
    if beside.is_file():
        return _read(beside), f"from {beside}"
    if "config" in content.metadata:
        where = f"metadata of {content.files[0]}"
        return _object(
            parse_json(content.metadata["config"], where, WANTED), where
        ), "from the file's metadata"
    if isinstance(content.values.get("config"), dict):
        config = _as_json(content.values["config"], str(content.files[0]))
        return config, "from the checkpoint's entry config"
    there = folder / CONFIG_NAME
    return (_read(there), f"found at {there}") if there.is_file() else (None, "")


def check_companions(folder: Path, config: dict[str, Any] | None) -> None:
    """Refuse a directory whose config.json is another model's.

    Raises:
        InputError: it says something else than `config`.
    """
    there = folder / CONFIG_NAME
    if config is not None and there.is_file() and _read(there) != config:
        raise InputError(
            f"destination {there}: differs from the config of the weights, and one directory has one model; "
            "remove it, or choose another directory"
        )


def write_companions(
    folder: Path, destination: Path, from_folder: Path, kind: Kind, config: dict[str, Any] | None
) -> list[str]:
    """Put into `folder` what `destination` lacks: the config, and what this kind needs of `from_folder`.

    Returns:
        The names of the files copied.

    Raises:
        InputError: one of them is a Git LFS pointer.
    """
    if config is not None:
        write_json(folder / CONFIG_NAME, config)
    copied = [
        name
        for name in kind.companions
        if (from_folder / name).is_file() and not (destination / name).exists()
    ]
    for name in copied:
        if is_lfs_pointer(start_of(from_folder / name)):
            raise InputError(f"{from_folder / name}: wanted a file that belongs to the model, got {LFS_HINT}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(from_folder / name, folder / name)
    return copied


def _read(path: Path) -> dict[str, Any]:
    return _object(read_json(path, WANTED), str(path))


def _object(config: Any, where: str) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise InputError(f"{where}: wanted {WANTED}, got {type(config).__name__}; give another with --config")
    if all(key in config for key in ("decay", "optimization_step", "inv_gamma")):
        return {key: value for key, value in config.items() if key not in EMA_STATE}
    return config


def _as_json(config: dict[Any, Any], where: str) -> dict[str, Any]:
    """What of a Python dictionary JSON can say; a type it lacks becomes its text."""
    try:
        return json.loads(json.dumps(config, default=str))
    except TypeError as error:  # a key that is no text
        raise InputError(f"{where}: its entry config is not JSON ({error}); give one with --config") from None
