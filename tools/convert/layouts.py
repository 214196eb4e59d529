"""Where the weights are in a training checkpoint, and what else is there.

Dictionaries may be nested (`state_dict` / `gen_model` / name) or their keys joined by dots
(`ema.transformer_blocks.0...`), as formats without nesting have it.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from common.checkpoint import placeholders
from common.errors import InputError

from .kinds import Kind, detect
from .tensors import Content, FileTensor, Tensor, in_words, shown

EMA = ("ema_state_dict", "ema", "model_ema", "ema_model", "shadow_params")
PLAIN = ("state_dict", "gen_model", "model_state_dict", "model", "module", "network", "generator")
OTHER = (  # what trainers keep beside the weights
    *("optimizer", "optimizer_state", "optimizer_state_dict", "opt", "lr_scheduler", "scaler_state"),
    *("moment1", "moment2", "moments", "adam_m", "adam_v", "exp_avg", "exp_avg_sq", "accum", "accu_grads"),
    *("discriminator", "dis_model", "loss", "lpips", "perceptual_loss", "sampler_state"),
)
COUNTERS = (
    *("epoch", "epoch_num", "step", "step_num", "cur_step", "current_step", "global_step", "learning_rate"),
    *("beta1_power", "beta2_power", "loss_scale", "scale_sense", "current_iterator_step"),
    *("last_overflow_iterator_step", "optimization_step"),
)
DEEPSPEED = ("ds_version", "param_shapes")  # entries of what its ranks save
STRAY = "top level"  # a tensor next to the dictionary of weights
COMPILED = "_orig_mod."  # torch.compile puts it anywhere in a name


@dataclass
class Weights:
    """The tensors of one model by name, which kind of model it is, and what to tell about the choice."""

    kind: Kind
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


@dataclass
class _Groups:
    ema: dict[Hashable, Tensor] = field(default_factory=dict)
    plain: dict[Hashable, Tensor] = field(default_factory=dict)
    other: dict[str, dict[Hashable, Tensor]] = field(default_factory=dict)


def find_weights(content: Content, kind: str, use_ema: bool, drop: tuple[str, ...] = ()) -> Weights:
    """The averaged weights if there are any (and `use_ema`), else the trained ones.

    Averages lack what is not trained, as wavelet filters: those come from the trained weights. Names lose
    `module.` and `_orig_mod.`; names that begin with one of `drop` are left out.

    Raises:
        InputError: no weights, weights of another kind than wanted, averages that cannot be named, or
            tensors without values that only `kind` "any" allows.
    """
    source = str(content.files[0])
    groups = _split(content, dotted=kind != "any", where=source)
    notes = list(content.notes)
    tensors, note = _choose(groups, use_ema, source)
    notes += [note] if note else []
    notes += _left_out(groups, content, use_ema)
    dropped = [name for name in tensors if drop and name.startswith(drop)]
    if drop and not dropped:
        raise InputError(f"{source}: no name begins with {' or '.join(drop)}; correct --drop")
    if dropped:
        notes.append(
            f"dropped: {len(dropped)} tensors, {in_words(_total(tensors[name] for name in dropped))}"
        )
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(dropped)}
    _check(kept, source, kind != "any" or not content.values.keys().isdisjoint(DEEPSPEED))
    return Weights(detect(kept, kind, source), kept, notes + _tied(kept))


def _check(tensors: Mapping[str, Tensor], source: str, whole: bool) -> None:
    """Refuse no tensor at all, a name that no format can hold and, if `whole`, tensors without values."""
    if not tensors:
        raise InputError(f"{source}: no tensor is left; wanted the weights of a model")
    wrong = [name for name in tensors if not _is_utf8(name)]
    if wrong:
        raise InputError(f"{source}: {shown(wrong[0])} is a name that UTF-8 cannot tell; rename the tensor")
    empty = [name for name, tensor in tensors.items() if 0 in tensor.shape]
    if empty and whole:
        raise InputError(placeholders(empty, source))


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _split(content: Content, dotted: bool, where: str) -> _Groups:
    groups = _Groups()
    nested = any(len(keys) > 1 and keys[0] in (*EMA, *PLAIN) for keys in content.tensors)
    for keys, tensor in content.tensors.items():
        group, name = (STRAY, keys[0]) if nested and len(keys) == 1 else _classify(keys, dotted)
        table = {"ema": groups.ema, "plain": groups.plain}.get(group)
        if table is None:
            table = groups.other.setdefault(group, {})
        if name in table:
            raise InputError(
                f"{where}: two tensors are called {shown(str(name))} once prefixes are removed; "
                "use --kind any"
            )
        table[name] = tensor
    return groups


def _classify(keys: tuple[Hashable, ...], dotted: bool) -> tuple[str, Hashable]:
    """What the tensor belongs to ("plain", "ema", or what it is called in the file), and its name there."""
    group, path = "plain", list(keys)
    while len(path) > 1:
        if path[0] in EMA:
            group = "ema"
        elif path[0] not in PLAIN:
            taken = len(keys) - len(path) + 1
            return ".".join(map(str, keys[:taken])), ".".join(map(str, path[1:]))
        path.pop(0)
    name = path[0]
    if not dotted or not isinstance(name, str):
        return group, name
    name = name.replace(COMPILED, "")
    while "." in name:
        first, rest = name.split(".", 1)
        if first in EMA:
            group = "ema"
        elif first in OTHER:
            return first, rest
        elif first not in PLAIN:
            break
        name = rest
    return ("counters", name) if name in COUNTERS else (group, name)


def _choose(groups: _Groups, use_ema: bool, where: str) -> tuple[dict[str, Tensor], str]:
    """The weights by name, and a sentence if there was a choice."""
    plain = {str(name): tensor for name, tensor in groups.plain.items()}
    if use_ema and groups.ema:
        averaged = _named(groups.ema, plain, where)
        missing = {name: tensor for name, tensor in plain.items() if name not in averaged}
        if plain and len(missing) == len(plain):
            raise InputError(
                f"{where}: averaged and trained weights have no name in common ({min(averaged)}, "
                f"{min(plain)}); use --no-ema"
            )
        note = f"took the averaged weights (EMA), {len(averaged)} tensors"
        if missing:
            note += f", and {len(missing)} that are not averaged from the trained ones, as {min(missing)}"
        return {**averaged, **missing}, note
    if plain:
        return plain, f"took the trained weights, {len(plain)} tensors, not the average" if groups.ema else ""
    unknown = [name for name in groups.other if name.split(".")[-1] not in (*OTHER, STRAY, "counters")]
    if len(unknown) == 1:
        chosen = {str(name): tensor for name, tensor in groups.other.pop(unknown[0]).items()}
        return chosen, f"took {unknown[0]}, the only group of tensors that can be weights"
    found = ", ".join([*(["averaged weights"] if groups.ema else []), *groups.other]) or "no tensor"
    raise InputError(
        f"{where}: found {found}; wanted a dictionary of tensors, or one under {', '.join((*PLAIN, *EMA))}: "
        "save the weights alone, where the checkpoint was made"
        + (", or leave out --no-ema" if groups.ema else "")
    )


def _named(ema: Mapping[Hashable, Tensor], plain: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Averages by name. A bare list of them (`shadow_params`) is in the order of the trained weights."""
    if all(isinstance(name, str) for name in ema):
        return {str(name): tensor for name, tensor in ema.items()}
    shadow = list(ema.values())
    if [t.shape for t in shadow] != [t.shape for t in plain.values()]:
        raise InputError(
            f"{where}: {len(shadow)} averages without names do not match the {len(plain)} trained weights; "
            "use --no-ema, or save the averages with names"
        )
    return dict(zip(plain, shadow, strict=True))


def _left_out(groups: _Groups, content: Content, use_ema: bool) -> list[str]:
    parts = [
        f"{name} ({len(tensors)} tensors, {in_words(_total(tensors.values()))})"
        for name, tensors in groups.other.items()
    ]
    with_tensors = {str(keys[0]) for keys in content.tensors}
    parts += [name for name in content.values if name not in with_tensors and name not in ("config",)]
    if groups.ema and groups.plain:
        parts.append("the trained weights that have an average" if use_ema else "the averages")
    return [f"left out: {', '.join(parts)}"] if parts else []


def _tied(tensors: Mapping[str, Tensor]) -> list[str]:
    """A note on tensors that share their bytes, as tied embeddings."""
    same = Counter(t for t in tensors.values() if isinstance(t, FileTensor) and t.nbytes)
    notes = []
    for tensor in (t for t, count in same.items() if count > 1):
        names = [name for name, t in tensors.items() if t == tensor]
        notes.append(
            f"tied: {', '.join(names)} are one tensor, written {len(names)} times "
            f"({in_words(tensor.nbytes)} each); --drop can leave copies out"
        )
    return notes


def _total(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
