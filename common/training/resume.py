"""Which checkpoint a training run starts from, whether it may, and which ones it keeps."""

import contextlib
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.config import Config, build, free_keys
from common.errors import InputError

from .checkpoint import (
    MANIFEST,
    Checkpoint,
    checkpoint_folder,
    checkpoints,
    clear_leftovers,
    delete,
    open_checkpoint,
    read_manifest,
    step_of,
)
from .ranks import ONE_RANK, Ranks, together


def starting_point(
    resume: str,
    output: Path,
    config: Config,
    more_free: Collection[str],
    ranks: Ranks = ONE_RANK,
) -> Checkpoint | None:
    """The checkpoint that `resume` means: auto, never, or the path of a checkpoint or of a run.

    None: start at step 0. Keys marked as not affecting the result may differ from the checkpoint's, and those
    in `more_free`.

    Raises:
        InputError: no good checkpoint, another config, or the output has checkpoints that are not continued.
    """
    own = checkpoints(output)
    if resume == "never":
        if own:
            raise InputError(
                f"resume=never: {own[-1]} is there already; set resume=auto to continue, or another output"
            )
        return None
    if resume == "auto":
        found = newest_good(output, ranks)
    else:
        found = _named(Path(resume), ranks)
        left_over = [folder for folder in own if folder.resolve() != found.folder.resolve()]
        left_over = [f for f in left_over if found.folder.parent != f.parent or step_of(f) > found.step]
        if left_over:
            raise InputError(
                f"resume={resume}: {left_over[-1]} would be mixed with the new run; "
                "set resume=auto to continue from there, delete it, or set another output"
            )
    if found is not None:
        check_same_run(found, config, (*free_keys(type(config)), *more_free))
    return found


def _named(path: Path, ranks: Ranks) -> Checkpoint:
    """A checkpoint given by its folder or its run's; damaged ones of a run are passed over, as always."""
    if (path / MANIFEST).is_file():
        together(ranks, lambda: open_checkpoint(path, verify=ranks.rank == 0))
        return open_checkpoint(path, verify=False)
    found = newest_good(path, ranks)
    if found is None:
        raise InputError(
            f"resume={path}: no checkpoint there; wanted auto, never, .../checkpoints/step-NNNNNNNN, "
            "or the output folder of a run"
        )
    return found


def newest_good(output: str | Path, ranks: Ranks = ONE_RANK) -> Checkpoint | None:
    """The newest checkpoint whose files are all there and unchanged; None where there is none at all.

    A damaged one is reported on stderr, file and fault, and the one before it is tried. Every rank calls
    this; rank 0 verifies.

    Raises:
        InputError: there are checkpoints and none is good.
    """
    faults: list[str] = []
    for folder in reversed(checkpoints(output)):
        found, fault = None, ""
        try:
            found = open_checkpoint(folder, verify=ranks.rank == 0)
        except (InputError, OSError) as error:
            fault = str(error)
            print(f"warning: {fault}; trying the checkpoint before it", file=sys.stderr)
        if not ranks.any(found is None):
            return found
        faults.append(fault or f"checkpoint {folder}: refused by another rank")
    if faults:
        told = "\n  ".join(faults)
        raise InputError(
            f"resume: none of the {len(faults)} checkpoints is good; restore one from a backup, "
            f"or start anew in another output folder:\n  {told}"
        )
    return None


def check_same_run(found: Checkpoint, config: Config, free: Collection[str]) -> None:
    """Refuse to continue a checkpoint with another config; keys in or under `free` may differ.

    Keys that came into being after it was written count as having their defaults.

    Raises:
        InputError: every key that differs with both values.
    """
    there, here = _flat(found.config), _flat(_dump(config))
    with contextlib.suppress(InputError):  # keys that are no more: named below
        there = _flat(_dump(build(type(config), found.config, where=str(found.folder))))
    differ = [
        f"{key}: {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, ...) != here.get(key, ...)
        and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if differ:
        told = "\n  ".join(differ)
        raise InputError(
            f"resume {found.folder}: another config wrote this checkpoint; "
            f"use that config, or another output folder for this one:\n  {told}"
        )


def prune(output: str | Path, current: int, config: Config, keep_last: int, keep_best: int) -> None:
    """Delete all checkpoints but the newest `keep_last` (at least 1) and the `keep_best` of lowest score.

    The one of step `current`, known to be good, always stays, and so does what is newer: a run that resumed
    before a damaged checkpoint has not got there yet. One that cannot be read now may be readable later, and
    stays too.
    """
    clear_leftovers(output)
    old = [folder for folder in checkpoints(output) if step_of(folder) <= current]
    keep = {checkpoint_folder(output, current)}
    sound = []
    for folder in old:
        try:
            sound.append(open_checkpoint(folder, verify=False))
        except InputError:
            continue
        except OSError as error:
            print(f"warning: {folder}: {error}; it is left there", file=sys.stderr)
            keep.add(folder)
    judged = [c for c in sound if c.score is not None and _judged_alike(c.config, config)]
    scored = sorted((c.score, -c.step, c.folder) for c in judged)
    keep |= {c.folder for c in sound[-keep_last:]}
    keep |= {folder for _, _, folder in scored[:keep_best]}
    for folder in set(old) - keep:
        delete(folder)


def best_score(output: str | Path, until: int, config: Config) -> float | None:
    """The lowest score of this config's validation among the checkpoints up to a step."""
    scores = []
    for folder in checkpoints(output):
        if step_of(folder) <= until:
            try:
                manifest = read_manifest(folder)
            except (InputError, OSError):
                continue
            if _judged_alike(manifest["config"], config):
                scores.append(manifest["score"])
    return min((score for score in scores if score is not None), default=None)


def _judged_alike(there: dict[str, Any], config: Config) -> bool:
    """Scores compare only if they are of the same clips, prompts and settings."""
    return there.get("validation") == _dump(config).get("validation")


def _dump(config: Config) -> dict[str, Any]:
    return json.loads(config.model_dump_json())


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
        )
    return flat
