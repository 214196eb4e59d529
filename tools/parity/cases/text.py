"""Golden cases of captions, metrics and the text encoder."""

import numpy as np

from common import captions, metrics
from tools.parity.goldens import Case
from tools.parity.tree import Arrays, Tree

# without one of them it is another model
SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")


def run_captions(tree: Tree, case: Case) -> Arrays:
    """Strings compare equal or not: 1 for every record, and ours must be 1 everywhere."""
    data = case.data
    right = []
    for item in data["cleaning"]:
        text = item["input"]
        right.append(captions.clean_caption_as_trained(text) == item["cleaned_from_list_mt5"])
        right.append(
            captions.clean_caption_as_trained(text, keep_chinese=False) == item["cleaned_from_list_t5"]
        )
        right.append(captions.clean_caption(text) == item["cleaned_from_str_mt5"])
    for item in data["notices"]:
        picks = iter(pick for _, pick in item["choices_drawn"])

        def choose(options, picks=picks):
            pick = next(picks)
            return pick if pick in options else f"not offered: {pick}"

        if item["kind"] == "masking_notice":
            ours = captions.with_masking_notice(item["caption"], choose)
        else:
            ours = captions.with_notice(item["caption"], item["aesthetic"], item["kind"], choose)
        right.append(ours == item["output"] and next(picks, None) is None)
    for item in data["inpaint_caption_drop"]:
        draws = iter(draw for _, draw in item["draws"])
        kind = "video" if item["is_video"] else "image"
        ours = captions.drop_caption(
            "some text", kind, item["cfg"], item["default_text_ratio"], draws.__next__
        )
        golden = item["output"][0] if isinstance(item["output"], list) else item["output"]
        right.append(ours == golden)
    return {"strings": np.array(right)}


def run_metrics(tree: Tree, case: Case) -> Arrays:
    results: Arrays = {}
    for channels in ("c3", "c1"):
        # recorded as b t c h w, whatever the manifest's layouts say: c1 has shape (2, 3, 1, 24, 32)
        a, b = (case.inputs[f"video_{side}_{channels}"].transpose(0, 2, 1, 3, 4) for side in "ab")
        for name, metric in (("psnr", metrics.psnr_BT), ("ssim", metrics.ssim_BT)):
            each = metric(a, b)
            summary = metrics.summarize(each)
            results[f"{name}_each_{channels}"] = each
            results[f"{name}_mean_per_frame_{channels}"] = summary.mean_T
            results[f"{name}_std_per_frame_{channels}"] = summary.std_T
    return results


def run_text_encoder(tree: Tree, case: Case) -> Arrays:
    config, weights = case.record["full_config"], case.stored_weights
    sizes = {name: config[name] for name in SIZES}
    encoder = tree.text.TextEncoder.from_weights("mt5", config | sizes, weights, tree.device)
    with tree.runtime.inference():
        states = encoder(case.inputs["input_ids"], case.inputs["attention_mask"] > 0)
    return {"last_hidden_state": tree.numpy(states)}
