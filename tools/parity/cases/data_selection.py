"""Goldens of how training clips are selected: helper functions, frames, buckets, transforms.

Random choices were recorded and are handed to our functions. Tables compare equal or not: an output is 1 for
every row that came out right.
"""

from typing import Any

import numpy as np

from common.data import buckets, selection, transforms
from common.data.grouping import by_size
from common.data.t2v_config import T2VDataConfig
from tools.parity.goldens import Case, build_recorded
from tools.parity.tree import Arrays, Tree

from .defect import Defect, Unsupported

COUNTERS = {  # the reference's names for why an entry is dropped
    "no_cap": "no caption",
    "no_resolution": "no resolution",
    "too_long": "too long",
    "too_short": "too short",
    "res_mismatch_stride": "smaller than the stride",
    "res_too_small": "too small",
    "aspect_mismatch": "too wide or too tall",
}


def run_functions(tree: Tree, case: Case) -> dict[str, Any]:
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
    results: dict[str, Any] = {
        name: np.array([list(ours) == golden for ours, golden in pairs]) for name, pairs in rows.items()
    }
    others = [name for name in data if name not in rows]
    return results | dict.fromkeys(others, Unsupported("this version has no function for this table"))


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
    return build_recorded(T2VDataConfig, tree, where="golden")


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
        "force_resolution_train": normalised(forced),
        "any_resolution_train": normalised(free),
        "force_resolution_inpaint_resize_uint8": np.rint(forced).astype(np.uint8),
        "any_resolution_inpaint_resize_uint8": np.rint(free).astype(np.uint8),
        "force_resolution_inpaint_final": normalised(np.rint(forced)),
        "long_side_resize": transforms.resize(clip_THWC, *inside),
        "center_crop_top": transforms.resize(top.cut(clip_THWC), height, width),
        "enlarged": transforms.fit_to_size(H, W, *case.record["config"]["enlarged_to"])(clip_THWC),
    }
    for name in ("long_side_resize", "center_crop_top", "enlarged"):
        outputs[name] = outputs[name] / np.float32(255)
    return {name: frames_THWC.transpose(0, 3, 1, 2) for name, frames_THWC in outputs.items()}


def normalised(frames_THWC: np.ndarray) -> np.ndarray:
    return frames_THWC / np.float32(255) * 2 - 1
