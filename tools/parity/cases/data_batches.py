"""Goldens of how batches are put together."""

from collections import Counter
from typing import Any

import numpy as np

from common.data import buckets
from common.data.batch import pad, stack
from common.data.grouping import by_size, deal
from common.parallel import Mesh
from tools.parity.goldens import Case
from tools.parity.tree import Tree

from .defect import Defect, NotApplicable


def run_collate(tree: Tree, case: Case) -> dict[str, Any]:
    """Batches of clips filled with 1, 2, 3, ...: pixels and masks, padded or of one size."""
    results: dict[str, Any] = {}
    for record in case.data["records"]:
        name = record["case"]
        clips = [np.full((3, *tube), i + 1, np.float32) for i, tube in enumerate(record["tubes"])]
        results[f"{name}.input_ids"] = NotApplicable("our batches carry captions; the trainer encodes them")
        if name == "pad":
            x_BCTHW, keep_BTHW = pad(clips, buckets.Bucket(*record["max"]))
        elif name in ("group_mixed", "group_not_multiple"):
            results[f"{name}.refused"] = Defect(
                np.array(_refuses(clips)),
                np.array(True),
                "the reference replaces a sample of another size by a copy of its neighbour; "
                "ours are grouped, and a mixed batch is an error",
            )
            results[f"{name}.attention_mask"] = NotApplicable("our batches are never mixed")
            continue
        else:
            x_BCTHW = stack(clips)
            _, keep_BTHW = pad(clips, buckets.Bucket(*clips[0].shape[1:]))  # our grouped batches have no mask
        right = list(x_BCTHW.shape) == record["pixel_shape"]
        results[f"{name}.attention_mask"] = keep_BTHW.astype(np.float32)
        sums = x_BCTHW.sum((1, 2, 3, 4)).tolist()
        results[f"{name}.pixels"] = np.array([right, sums == record["pixel_sum_per_sample"]])
    results.pop("group_not_multiple.input_ids")
    results.pop("group_not_multiple.attention_mask")
    return results


def _refuses(clips: list[np.ndarray]) -> bool:
    try:
        stack(clips)
    except ValueError:
        return True
    return False


def run_group_sampler(tree: Tree, case: Case) -> dict[str, Any]:
    """The order of an epoch from recorded permutations.

    Without groups ours is the recorded order. With groups the reference cuts one list of all groups into
    batches; where a batch holds two groups, it drops the samples of the smaller. Our order, cut that way, is
    the recorded one; our own batches are of one group and lose no sample.
    """
    results: dict[str, Any] = {}
    for number, record in enumerate(case.data["records"]):
        mesh = [Mesh(rank, record["world_size"]) for rank in range(record["world_size"])]
        batch = record["batch_size"] * record["world_size"]
        keys = np.array(record["lengths"])[:, None]
        groups = by_size(keys) if record["group_data"] else [np.arange(len(keys))]
        if record["group_data"]:
            draws = iter(record["permutations_drawn_in_order"])
            order = np.concatenate([group[next(draws)] for group in groups]).tolist()
            ours = _as_reference(record, order, next(draws), mesh)
            own = deal(groups, batch, np.random.default_rng(0).permutation)
            single = all(len({record["lengths"][i] for i in samples}) == 1 for samples in own.samples)
            results[f"record{number}.complete"] = Defect(
                np.array([single, set(own.samples.ravel().tolist()) == set(range(len(keys)))]),
                np.array([True, True]),
                "the reference loses samples where a batch would hold two sizes",
            )
        else:
            recorded = map(np.array, record["permutations_drawn_in_order"])
            epoch = deal(groups, batch, lambda count, draws=recorded: next(draws))
            ours = [[m.share(samples.tolist()) for m in mesh] for samples in epoch.samples]
        results[f"record{number}.steps"] = np.array(ours == record["steps"])
    return results


def _as_reference(record: dict, order: list[int], batches: list[int], mesh: list[Mesh]) -> list:
    """Batches cut from the list of all groups, as the reference cuts them, with its recorded choices."""
    size = record["batch_size"] * record["world_size"]
    draws = iter(record["python_random_draws"])
    cut = [order[first : first + size] for first in range(0, len(order), size)]
    skipped = record["initial_global_step"] * record["gradient_accumulation_size"]
    steps = []
    for samples in cut:
        ranks = [m.share(samples) for m in mesh]
        steps.append([_one_size(rank or next(draws)[1], record, draws) for rank in ranks])
    return [steps[i] for i in batches][skipped:]


def _one_size(samples: list[int], record: dict, draws: Any) -> list[int]:
    sizes = [record["lengths"][i] for i in samples]
    usual = Counter(reversed(sizes)).most_common(1)[0][0]  # of equally frequent ones the last
    kept = [i for i, size in zip(samples, sizes) if size == usual]
    while len(kept) < record["batch_size"]:
        kept.append(next(draws)[1])
    return kept
