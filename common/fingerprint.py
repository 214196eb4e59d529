"""What a cache of latents and text states belongs to: one VAE, one text encoder, one selection of clips.

A hash of each is kept, and a cache made with others is refused.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .checkpoint import weight_files
from .config import marks_of
from .data.annotations import annotation_files
from .data.t2v_config import T2VDataConfig
from .digests import file_digest
from .errors import InputError
from .i2v_training import I2VConfig
from .runs import ModelSource
from .text import TOKENIZER_FILES, TextConfig, model_dir

REMEDY = "encode the clips anew into another folder, or use what the cache was made with"


def fingerprint(
    vae: ModelSource, text: TextConfig, data: T2VDataConfig, conditions: I2VConfig | None = None
) -> dict[str, str]:
    """A hash of each thing that decides what a cache holds.

    Raises:
        InputError: a file that is missing.
    """
    settings = text.model_dump(exclude={"path", "dtype"})
    clips = data.model_dump(exclude=set(unbound()), exclude_defaults=True)  # files are known by their content
    shown = {} if conditions is None else {"conditions": _hash([conditions.model_dump()])}
    return {
        "vae": model_hash(vae),
        "text": _hash([settings, *_digests(_encoder_files(text))]),
        "data": _hash([clips, *_digests(annotation_files(data.annotations))]),
        **shown,
    }


def unbound() -> tuple[str, ...]:
    """Keys of the data section that do not change what a clip or its caption is."""
    marks = {name: marks_of(T2VDataConfig, name) or {} for name in T2VDataConfig.model_fields}
    return tuple(name for name, mark in marks.items() if not mark.get("affects_encoding", True))


def clips_of(data: T2VDataConfig) -> str:
    """A hash of which clips there are and in what order they are dealt: of the annotations, or of a cache's
    index; that of nothing for generated scenes.

    Raises:
        InputError: a file that is missing.
    """
    if data.encoded is not None:
        return _hash(_digests([Path(data.encoded) / "index.json"]))
    return _hash(_digests(annotation_files(data.annotations)))


def check_fingerprint(made_with: dict[str, str], wanted: dict[str, str], folder: Path) -> None:
    """Refuse a cache made with something else.

    Raises:
        InputError: names what differs.
    """
    what = {
        "vae": "another VAE",
        "text": "another text encoder or max_length",
        "data": "other clips: annotations, sizes, lengths or captions",
        "conditions": "other conditions, or none, of an image-to-video model",
        "order": f"{made_with.get('order')}, not {wanted.get('order')}",
    }
    wrong = [what[key] for key in wanted if made_with.get(key) != wanted[key]]
    if wrong:
        raise InputError(f"encoded {folder}: it was made with {' and '.join(wrong)}; {REMEDY}")


def encoder_hash(text: TextConfig) -> str:
    """A hash of the files that decide the text states."""
    return _hash(_digests(_encoder_files(text)))


def model_hash(source: ModelSource) -> str:
    """A hash of a model's config and weights."""
    if source.path is None:
        return _hash([source.model_dump()])
    files = [Path(source.path) / "config.json", *weight_files(source.path)]
    return _hash([source.overrides, *_digests(files)])


def _encoder_files(text: TextConfig) -> list[Path]:
    """What decides the text states: neither a README nor weights in other formats."""
    return sorted(
        path
        for path in model_dir(text).iterdir()
        if path.suffix in (".json", ".safetensors") or path.name in TOKENIZER_FILES
    )


def _digests(paths: Iterable[Path]) -> Iterator[bytes]:
    """That of each file's content: where they lie does not matter."""
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"encoded clips: {path} is missing, wanted it to tell whether they were made with it; "
                "correct its path in the config"
            )
        yield bytes.fromhex(file_digest(path))


def _hash(parts: Iterable[Any]) -> str:
    """One hash of digests and of values that JSON can tell."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return total.hexdigest()
