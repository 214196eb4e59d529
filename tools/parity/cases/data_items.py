"""Goldens of one training item: pixels, text and mask."""

from typing import Any

import numpy as np

from common.data import selection, text, transforms
from common.data.t2v_config import T2VDataConfig
from common.masks import generate_mask, given_frames, masked
from tools.parity.goldens import Case, build_recorded
from tools.parity.tree import Tree

from .data_selection import normalised


def run_items(tree: Tree, case: Case) -> dict[str, Any]:
    """Whole items: frames, text and pixels of a video, an image, and an image with blurred faces."""
    args, shot = case.record["args"], case.record["config"]
    config = build_recorded(
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
            x_CTHW = normalised(np.rint(x_THWC) if inpaint else x_THWC).transpose(3, 0, 1, 2)
            results[f"{name}_pixel_values"] = _with_mask(x_CTHW, mask) if mask else x_CTHW
    return results


def _item_frames(config: T2VDataConfig, shot: dict, begin: int) -> list[int]:
    return selection.choose_frames(shot["cut"], shot["nf"], shot["fps"], config, lambda *_: begin).tolist()


def _item_text(draws: Any, kind: Any, item: dict, inpaint: bool, shot: dict, case: Case) -> bool:
    """Whether our text is the recorded one, with the recorded choices."""
    captions = [next(draws)[1]]
    sam = item["name"] == "sam_image"
    config = build_recorded(
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
