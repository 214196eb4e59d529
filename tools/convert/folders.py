"""Which files of a folder are a model's weights: what its names say, never the order they are listed in.

A trainer's checkpoint keeps weights in folders inside (`model/`, `model_ema/`, DeepSpeed's states) or beside
the states of optimizer and scheduler; a pipeline of diffusers keeps one model in each folder.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.checkpoint import INDEX_TAIL, WEIGHTS_NAME, read_weight_map, visible_files
from common.errors import InputError
from common.files import start_of

from .formats import SUFFIXES
from .tensors import shown

AVERAGED, PLAIN = "model_ema", "model"  # folders inside a checkpoint of the reference's trainer
DEFAULT_STEM = WEIGHTS_NAME.removesuffix(".safetensors")
STEMS = {"pytorch_model": "model"}  # transformers and accelerate: pytorch_model.bin is model.safetensors
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")
RANK = re.compile(r".*_model_states\.pt")  # DeepSpeed's: what one rank held of the model
STATE = re.compile(  # what accelerate, transformers and DeepSpeed write beside the weights
    r"(optimizer|(lr_)?scheduler|scaler|sampler|dl_state_dict|custom_checkpoint|random_states|rng_state"
    r"|training_args)([_.-]\d+)*\.(bin|pt|pth|pkl|safetensors)|.*_optim_states\.pt"
)
TRAINER = ("latest", "zero_to_fp32.py", "trainer_state.json")
DISTRIBUTED = ".distcp"  # shards of torch.distributed.checkpoint
GATHER = "gather them with the trainer's zero_to_fp32.py and convert what it writes"


@dataclass
class Chosen:
    """The files of one model, what else is there, and what to tell about the choice."""

    files: list[Path]
    listed: list[str] = field(default_factory=list)  # the tensors in the index, if there is one
    others: list[str] = field(default_factory=list)  # other weights
    states: list[str] = field(default_factory=list)  # what belongs to the trainer
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """An index, a file, or shards without an index: weights under one name in one format."""

    name: str  # of the index, the file, or the first shard
    stem: str
    suffix: str
    names: tuple[str, ...]  # of its files
    listed: tuple[str, ...] = ()  # tensors, from an index


def weights_in(folder: Path, use_ema: bool) -> Chosen:
    """The weights that a folder means: `model_ema/` inside it (unless not `use_ema`), its own files,
    `model/` inside it, the only other folder with weights, or what DeepSpeed saved; the first there is.

    Raises:
        InputError: nothing, or several to choose from: the message names them all.
    """
    inner = {path.name: names for path in _subfolders(folder) if (names := weight_names(path))}
    own, place, note = weight_names(folder), "", ""
    if use_ema and (folder / AVERAGED).is_dir():
        place, note = AVERAGED, f"took {AVERAGED}/, the averaged weights"
    elif own and PLAIN in inner:
        raise _several(folder, [*own, f"{PLAIN}/"])
    elif not own:
        place, note = _place_inside(folder, {n: f for n, f in inner.items() if n != AVERAGED})
    chosen = _pick(folder / place, _candidates(folder / place))
    beside = [f"{name}/" for name, names in inner.items() if name != place and not _are_states(names)]
    chosen.others += [*(own if place else []), *beside]
    chosen.states += _states(folder, inner, place)
    chosen.notes += [note] if note else []
    return chosen


def index_in(index: Path) -> Chosen:
    """What an index lists, all of it there.

    Raises:
        InputError: it is no index, or files are missing.
    """
    return _chosen(index.parent, _indexed(index))


def weight_names(folder: Path) -> list[str]:
    """What may be the weights of a folder: files and indexes by their names, without what holds states."""
    endings = [suffix + tail for suffix in SUFFIXES for tail in ("", INDEX_TAIL)]
    names = [file.name for ending in endings for file in visible_files(folder, ending)]
    return [name for name in names if not STATE.fullmatch(name)]


def _candidates(folder: Path) -> list[Candidate]:
    """The same with shards put together, those of an index or of one numbering."""
    names = weight_names(folder)
    found = [_indexed(folder / name) for name in names if name.endswith(INDEX_TAIL)]
    listed = {name for candidate in found for name in candidate.names}
    families: dict[str, list[str]] = {}
    for name in names:
        if name not in listed and not name.endswith(INDEX_TAIL):
            match = _shard(name)
            family = f"{match['stem']}-of-{match['total']}{match['suffix']}" if match else name
            families.setdefault(family, []).append(name)
    return found + [_unlisted(family) for family in families.values()]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _indexed(index: Path) -> Candidate:
    full = index.name.removesuffix(INDEX_TAIL)
    weight_map = read_weight_map(index)
    names = tuple(sorted(set(weight_map.values())))
    return Candidate(index.name, _stem(Path(full).stem), Path(full).suffix, names, tuple(weight_map))


def _unlisted(names: Sequence[str]) -> Candidate:
    """A file, or shards with the names that their numbering wants."""
    match, suffix = _shard(names[0]), Path(names[0]).suffix
    if match is None:
        return Candidate(names[0], _stem(Path(names[0]).stem), suffix, tuple(names))
    numbers = range(1, int(match["total"]) + 1)
    wanted = tuple(f"{match['stem']}-{i:05d}-of-{match['total']}{suffix}" for i in numbers)
    return Candidate(names[0], _stem(match["stem"]), suffix, wanted)


def _shard(name: str) -> re.Match | None:
    """The parts of a shard's name; one that its own numbering does not want is a file like others."""
    match = SHARD.fullmatch(name)
    return match if match and 1 <= int(match["number"]) <= int(match["total"]) else None


def _stem(stem: str) -> str:
    return STEMS.get(stem, stem)


def _place_inside(folder: Path, inner: dict[str, list[str]]) -> tuple[str, str]:
    """The folder inside that holds the model, and why it was taken."""
    models = [name for name, names in inner.items() if not _are_states(names)]
    if PLAIN in models:
        return PLAIN, f"took {PLAIN}/, the trained weights"
    if len(models) > 1:
        raise _several(folder, [f"{name}/" for name in models])
    if models:
        return models[0], f"took {models[0]}/, the only folder with weights"
    states = list(inner)
    latest = _latest(folder)
    if latest and latest not in states:
        raise InputError(
            f"source {folder}: the file latest names {shown(latest)}/, which holds no weights; "
            "copy the checkpoint again, or give the folder you mean as SOURCE"
        )
    if not latest and len(states) > 1:
        raise _several(folder, [f"{name}/" for name in states])
    if not states:
        raise _nothing(folder)
    return (
        latest or states[0],
        f"took {latest or states[0]}/, DeepSpeed's copy in the precision it trained in; "
        "its zero_to_fp32.py gathers the float32 weights",
    )


def _latest(folder: Path) -> str:
    """The folder that DeepSpeed wrote last, as its file `latest` names it."""
    file = folder / "latest"
    return start_of(file, 256).decode(errors="replace").strip() if file.is_file() else ""


def _pick(folder: Path, found: Sequence[Candidate]) -> Chosen:
    """One of the candidates: of the first format of SUFFIXES, that with the default stem or the only stem."""
    if not found:
        raise _nothing(folder)
    names = [candidate.name for candidate in found]
    if len(found) > 1 and _are_states(names):
        raise InputError(
            f"source {folder}: found {_some(names)}, which are parts of one model, a rank each; {GATHER}"
        )
    suffix = min((candidate.suffix for candidate in found), key=SUFFIXES.index)
    first = [candidate for candidate in found if candidate.suffix == suffix]
    usual = [candidate for candidate in first if candidate.stem == DEFAULT_STEM]
    if len(usual or first) > 1 or (not usual and len({candidate.stem for candidate in found}) > 1):
        raise _several(folder, names)
    fitting = usual or first
    chosen = _chosen(folder, fitting[0])
    chosen.others = [candidate.name for candidate in found if candidate is not fitting[0]]
    return chosen


def _chosen(folder: Path, candidate: Candidate) -> Chosen:
    missing = [name for name in candidate.names if not (folder / name).is_file()]
    if missing:
        who = candidate.name if candidate.listed else "their numbering"
        raise InputError(
            f"source {folder}: {who} wants {_some(missing)}, not there; download the missing shards"
        )
    return Chosen([folder / name for name in candidate.names], list(candidate.listed))


def _are_states(names: Iterable[str]) -> bool:
    return all(map(RANK.fullmatch, names))


def _states(folder: Path, inner: dict[str, list[str]], place: str) -> list[str]:
    """What the trainer keeps in a folder besides weights to load."""
    files = [p.name for p in folder.iterdir() if STATE.fullmatch(p.name) or p.name in TRAINER]
    ranks = [f"{name}/" for name, names in inner.items() if _are_states(names) and name != place]
    shards = [f"{path.name}/" for path in _subfolders(folder) if any(path.glob(f"*{DISTRIBUTED}"))]
    return sorted({*files, *ranks, *shards})


def _several(folder: Path, names: Sequence[str]) -> InputError:
    return InputError(
        f"source {folder}: found {', '.join(names)}; wanted one model: give the one you mean as SOURCE"
    )


def _nothing(folder: Path) -> InputError:
    if any(folder.glob(f"*{DISTRIBUTED}")) or any(folder.glob(f"*/*{DISTRIBUTED}")):
        return InputError(
            f"source {folder}: found shards of torch.distributed ({DISTRIBUTED}), wanted whole weights; "
            "gather them with `accelerate merge-weights` and convert what it writes"
        )
    found = _some(sorted(path.name for path in folder.iterdir())) or "nothing"
    advice = "; only averaged weights: leave out --no-ema" if (folder / AVERAGED).is_dir() else ""
    return InputError(
        f"source {folder}: found {found}; wanted a file that ends in {', '.join(SUFFIXES)}, or folders with "
        f"such files{advice}"
    )


def _some(names: Iterable[str]) -> str:
    """Some of them, in words."""
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
