"""The files beside the weights: config.json and, for text encoders, the tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

from common.errors import InputError

from .kinds import Kind
from .tensors import Content

CONFIG_NAME = "config.json"
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
        return _parse(
            content.metadata["config"], f"metadata of {content.files[0]}"
        ), "from the file's metadata"
    if isinstance(content.values.get("config"), dict):
        return json.loads(
            json.dumps(content.values["config"], default=str)
        ), "from the checkpoint's entry config"
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
    folder: Path, destination: Path, source: Path, kind: Kind, config: dict[str, Any] | None
) -> list[str]:
    """Put into `folder` what `destination` lacks: the config, and the source's files that this kind needs.

    Returns:
        The names of the files copied from the source.
    """
    if config is not None:
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    from_folder = source if source.is_dir() else source.parent
    copied = [
        name
        for name in kind.companions
        if (from_folder / name).is_file() and not (destination / name).exists()
    ]
    for name in copied:
        shutil.copyfile(from_folder / name, folder / name)
    return copied


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a config.json with --config") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error}); give a config.json with --config") from None
    if not isinstance(config, dict):
        raise InputError(
            f"{where}: holds {type(config).__name__}, wanted a JSON object; give one with --config"
        )
    if all(key in config for key in ("decay", "optimization_step", "inv_gamma")):
        config = {key: value for key, value in config.items() if key not in EMA_STATE}
    return config
