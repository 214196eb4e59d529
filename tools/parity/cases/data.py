"""Golden cases of the transformer's training data: selection, frames, sizes, transforms, batches.

Random choices were recorded and are handed to our functions. Tables compare equal or not: an output is 1 for
every row that came out right.
"""

from collections import Counter
from typing import Any

import numpy as np

from common.config import build
from common.data import buckets, selection, text, transforms
from common.data.batch import pad, stack
from common.data.grouping import by_size, deal
from common.data.t2v_config import T2VDataConfig
from common.masks import generate_mask, given_frames, masked
from common.parallel import Mesh
from tools.parity.goldens import Case
from tools.parity.tree import Arrays, Tree

from .defect import Defect, NotApplicable

COUNTERS = {  # the reference's names for why an entry is dropped
    "no_cap": "no caption",
    "no_resolution": "no resolution",
    "too_long": "too long",
    "too_short": "too short",
    "res_mismatch_stride": "smaller than the stride",
    "res_too_small": "too small",
    "aspect_mismatch": "too wide or too tall",
}


def run_functions(tree: Tree, case: Case) -> Arrays:
    """Sizes, crop boxes and lengths, row by row."""
    data = case.data
    rows = {
        "maxhwresize": [
            (buckets.shrunk_to_area(r["h"], r["w"], r["max_hxw"]), r["result"]) for r in data["maxhwresize"]
        ],
        "get_params": [
            (transforms.stride_box(r["h"], r["w"], r["stride"]), r["result_i_j_th_tw"])
            for r in data["get_params"]
        ],
        "longsideresize": [
            (buckets.fitted(r["h"], r["w"], *r["size"], enlarge=not r["skip_low_resolution"]), r["result"])
            for r in data["longsideresize"]
        ],
        "filter_resolution": [
            (
                [buckets.has_aspect(r["h"], r["w"], *bounds) for bounds in ((8 / 16, 17 / 16), (0.5, 2))],
                [r["default"], r["thr2"]],
            )
            for r in data["filter_resolution"]
        ],
        "find_closest_y": [
            ([selection.closest_length(frames, selection.MIN_FRAMES, multiple, stride)], [length])
            for frames, stride, multiple, length in data["find_closest_y"]
        ],
        "center_crop_th_tw": [
            (transforms.aspect_box(r["h"], r["w"], r["th"], r["tw"], r["top_crop"]), r["box_i_j_h_w"])
            for r in data["center_crop_th_tw"]
        ],
        "pad_to_multiple": [
            ([buckets.rounded_up(count, multiple)], [padded])
            for count, multiple, padded in data["pad_to_multiple"]
        ],
    }
    assert rows.keys() == data.keys()
    return {name: np.array([list(ours) == golden for ours, golden in pairs]) for name, pairs in rows.items()}


def run_index(tree: Tree, case: Case) -> dict[str, Any]:
    """Which entries are kept and why others are not; frames, buckets, and buckets too small to keep."""
    results = {}
    for name, setting in case.data["settings"].items():
        results |= {f"{name}.{key}": value for key, value in _index(case.data["entries"], setting).items()}
    return results


def _index(entries: list[dict], setting: dict) -> dict[str, Any]:
    config, columns = _data_config(setting["args"]), _columns(entries)
    decisions = setting["decisions"]
    zero_sided = (columns.height == 0) & (columns.width > 0)
    undecided = _select(columns, config, np.ones(len(entries)))
    drawn = (columns.num_frames > 0) & (
        (undecided.reason == selection.KEPT) | (undecided.reason == selection.REASONS.index("too short"))
    )
    available = selection.resampled_length(
        columns.num_frames, np.where(np.isnan(columns.fps), selection.UNKNOWN_FPS, columns.fps), config.fps
    )
    draws = np.ones(len(entries))
    draws[drawn & (available < config.num_frames)] = setting["drop_short_draws"]  # raises if not as many
    ours = _select(columns, config, draws)
    alone = [decision["kept"] or decision["reason_alone"] is not None for decision in decisions]
    numbers = np.where(alone, undecided.reason, ours.reason)  # recorded for each entry alone: none too short
    reasons = [selection.REASONS[number] for number in numbers]
    same = np.array([ours == _reason(decision) for ours, decision in zip(reasons, decisions)])
    kept = [i for i, decision in enumerate(decisions) if decision["kept"]]
    ours_kept = ours.reason == selection.KEPT
    names = [
        str(buckets.Bucket(ours.num_frames[i], ours.height[i], ours.width[i])) for i in range(len(entries))
    ]
    groups = by_size(np.array([names[i] for i in kept])[:, None])
    large = [
        i for group in groups if len(group) >= setting["minority_filter"]["minimum_count"] for i in group
    ]
    lengths = [names[kept[i]] for i in sorted(large)]
    crops = iter(setting["temporal_crop_calls"])
    return {
        "reasons": same | zero_sided,
        "reason_of_height_0": Defect(
            np.array([reasons[i] == "no resolution" for i in np.flatnonzero(zero_sided)]),
            np.ones(zero_sided.sum(), bool),
            "with one forced size the reference blames the aspect of a clip without height; "
            "it has no resolution",
        ),
        "buckets": np.array([names[i] == decisions[i]["bucket"] for i in kept]),
        "kept": ours_kept == np.array([decision["kept"] for decision in decisions]),
        "frames_at_build": np.array(
            [_frames(entries[i], config, crops, 1) == decisions[i]["sample_frame_index"] for i in kept]
        ),
        "all_crops_used": np.array([next(crops, None) is None]),
        "frames_at_load": np.array(
            [
                _frames(
                    entries[i],
                    config,
                    iter(decisions[i]["actual_frames_crop_draw"] or ()),
                    config.speed_factor,
                )
                == decisions[i]["actual_frames"]
                for i in kept
                if "actual_frames" in decisions[i]
            ]
        ),
        "large_buckets": np.array(
            [
                lengths == setting["minority_filter"]["lengths"],
                [entries[kept[i]]["path"] for i in sorted(large)] == setting["minority_filter"]["kept"],
            ]
        ),
    }


def _data_config(args: dict) -> T2VDataConfig:
    if args["force_resolution"]:
        sizes = {"height": args["max_height"], "width": args["max_width"]}
    else:
        area = buckets.TOKEN**2
        sizes = {"max_tokens": args["max_hxw"] // area, "min_tokens": args["min_hxw"] // area}
    tree = {
        "annotations": "recorded",
        "sizes": sizes | {"hw_stride": args["hw_stride"]},
        "num_frames": args["num_frames"],
        "fps": args["train_fps"],
        "speed_factor": args["speed_factor"],
        "drop_short_ratio": args["drop_short_ratio"],
        "latent_multiple": args["sp_size"],
    }
    return build(T2VDataConfig, tree, where="golden")


def _columns(entries: list[dict]) -> selection.Columns:
    def column(read, dtype):
        return np.array([read(entry) for entry in entries], dtype)

    size = {
        side: column(lambda e, s=side: (e.get("resolution") or {}).get(s) or 0, np.int64) for side in SIDES
    }
    return selection.Columns(
        unreadable=np.zeros(len(entries), bool),
        has_caption=column(lambda e: bool(e.get("cap")), bool),
        known_type=np.ones(len(entries), bool),
        is_image=column(lambda e: e["path"].endswith(".jpg"), bool),
        num_frames=column(lambda e: e.get("num_frames", 0), np.int64),
        fps=column(lambda e: e.get("fps", np.nan), np.float64),
        **size,
    )


SIDES = ("height", "width")


def _select(columns: selection.Columns, config: T2VDataConfig, draws: np.ndarray) -> selection.Selection:
    assert config.sizes is not None
    return selection.select(columns, config, config.sizes, draws)


def _reason(decision: dict) -> str:
    if decision["kept"]:
        return "kept"
    if decision["reason_alone"] is None:
        return "left out as short (drop_short_ratio)"
    (counter,) = decision["reason_alone"]
    return COUNTERS[counter.removeprefix("cnt_").removeprefix("vid_").removeprefix("img_")]


def _frames(entry: dict, config: T2VDataConfig, crops: Any, speed_factor: float) -> list[int]:
    if "num_frames" not in entry:
        return [0]

    def begin(total: int, length: int) -> int:
        call = next(crops)
        assert (total, length) == (call["total"], call["end"] - call["begin"])
        return call["begin"]

    start = (entry.get("cut") or [0])[0]
    fps = entry.get("fps", selection.UNKNOWN_FPS)
    return selection.choose_frames(start, entry["num_frames"], fps, config, begin, speed_factor).tolist()


def run_transforms(tree: Tree, case: Case) -> Arrays:
    """Resizing and cropping of one clip in every mode."""
    clip_THWC = case.inputs["clip_uint8"].transpose(0, 2, 3, 1)
    _, H, W, _ = clip_THWC.shape
    (height, width), stride = case.record["config"]["force"], case.record["config"]["hw_stride"]
    forced = transforms.fit_to_size(H, W, height, width)(clip_THWC)
    h, w = (int(side) for side in buckets.shrunk_to_area(H, W, case.record["config"]["max_hxw"]))
    free = transforms.Fit(transforms.Box(0, 0, H, W), (h, w), transforms.stride_box(h, w, stride))(clip_THWC)
    inside = [int(side) for side in buckets.fitted(H, W, height, width, enlarge=True)]
    top = transforms.aspect_box(H, W, height, width, top=True)
    outputs = {
        "force_resolution_train": _normalised(forced),
        "any_resolution_train": _normalised(free),
        "force_resolution_inpaint_resize_uint8": np.rint(forced).astype(np.uint8),
        "any_resolution_inpaint_resize_uint8": np.rint(free).astype(np.uint8),
        "force_resolution_inpaint_final": _normalised(np.rint(forced)),
        "long_side_resize": transforms.resize(clip_THWC, *inside),
        "center_crop_top": transforms.resize(top.cut(clip_THWC), height, width),
        "enlarged": transforms.fit_to_size(H, W, *case.record["config"]["enlarged_to"])(clip_THWC),
    }
    for name in ("long_side_resize", "center_crop_top", "enlarged"):
        outputs[name] = outputs[name] / np.float32(255)
    return {name: frames_THWC.transpose(0, 3, 1, 2) for name, frames_THWC in outputs.items()}


def _normalised(frames_THWC: np.ndarray) -> np.ndarray:
    return frames_THWC / np.float32(255) * 2 - 1


def run_items(tree: Tree, case: Case) -> dict[str, Any]:
    """Whole items: frames, text and pixels of a video, an image, and an image with blurred faces."""
    args, shot = case.record["args"], case.record["config"]
    config = build(
        T2VDataConfig,
        {
            "annotations": "recorded",
            "sizes": {"height": 32, "width": 48},
            "num_frames": args["num_frames"],
            "fps": args["train_fps"],
        },
        where="golden",
    )
    results: dict[str, Any] = {}
    for task in ("t2v", "inpaint"):
        record = case.data[task]
        inpaint = task == "inpaint"
        for item in record["items"]:
            kind, name = ("video" if item["name"] == "video" else "image"), f"{task}_{item['name']}"
            draws = iter(item["draws_in_order"])
            if kind == "video":
                frames = [
                    _item_frames(config, shot, begin)
                    for begin in (record["build_draws"][0][1], next(draws)[1])
                ]
                results[f"{name}.planned_frames"] = np.array(frames[0] == item["planned_frames"])
                x0, x1, y0, y1 = shot["crop"]
                picked_THWC = case.inputs["video_frames"][frames[1], y0:y1, x0:x1]
            else:
                picked_THWC = case.inputs["image"][None]
            mask = next(draws)[1][0] if inpaint else None
            results[f"{name}.text"] = np.array(_item_text(draws, kind, item, inpaint, shot, case))
            _, H, W, _ = picked_THWC.shape
            x_THWC = transforms.fit_to_size(H, W, args["max_height"], args["max_width"])(picked_THWC)
            x_CTHW = _normalised(np.rint(x_THWC) if inpaint else x_THWC).transpose(3, 0, 1, 2)
            results[f"{name}_pixel_values"] = _with_mask(x_CTHW, mask) if mask else x_CTHW
    return results


def _item_frames(config: T2VDataConfig, shot: dict, begin: int) -> list[int]:
    return selection.choose_frames(shot["cut"], shot["nf"], shot["fps"], config, lambda *_: begin).tolist()


def _item_text(draws: Any, kind: Any, item: dict, inpaint: bool, shot: dict, case: Case) -> bool:
    """Whether our text is the recorded one, with the recorded choices."""
    captions = [next(draws)[1]]
    sam = item["name"] == "sam_image"
    config = build(
        T2VDataConfig,
        {
            "annotations": "recorded",
            "sizes": {"height": 32, "width": 48},
            "stock_caption_ratio": 0.5 if inpaint else 0.0,
            "masking_notice": inpaint,
        },
        where="golden",
    )

    def choose(options):
        pick = captions.pop() if captions else next(draws)[1]
        return pick if pick in options else f"not offered: {pick}"

    score = float("nan") if sam else shot["aes_v" if kind == "video" else "aes_i"]
    path = "/pictures/sam/1.jpg" if sam else "/pictures/1.jpg"
    ours = text.training_text(
        config, captions[:], score, kind, path, choose, lambda: next(draws, ("random", 1.0))[1]
    )
    return ours == item["text_given_to_tokenizer"] and next(draws, None) is None


def _with_mask(x_CTHW: np.ndarray, kind: str) -> np.ndarray:
    """Pixels, pixels with black where they are to be generated, and the mask of the task."""
    _, T, H, W = x_CTHW.shape
    given_T = given_frames(kind, T, min, lambda *_: [])
    generate_B1THW = generate_mask(given_T[None], None, H, W)
    return np.concatenate([x_CTHW, masked(x_CTHW[None], generate_B1THW)[0], generate_B1THW[0]])


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
