"""Golden cases of the transformer: whole models with gradients, blocks, pieces, rotary tables, Skiparse
bookkeeping.
"""

from typing import Any

import numpy as np

from common.conditions import grid_inputs, text_inputs
from common.masks import Condition
from common.models import TransformerConfig
from common.rope import axis_angles, rope_table, round_float, timestep_features
from common.skiparse import GROUP, SINGLE, keep_masks, native_order, padded_length
from tools.parity.by_name import ByName
from tools.parity.goldens import Case, build_recorded
from tools.parity.tree import Arrays, Tree

from .defect import Defect, NotApplicable

ONE_TEXT = "every query attends to the same text, so it is never repeated for the sub-sequences"


def build_transformer(tree: Tree, config: TransformerConfig, weights: Arrays | ByName, where: str) -> Any:
    return tree.load(tree.transformer.Transformer(config), weights, where)


def transformer_inputs(tree: Tree, config: TransformerConfig, case: Case) -> tuple:
    """(latents, time features, text, text mask, cos, sin, video masks, condition) of a case, as tensors."""
    given = case.inputs
    x, *shown = np.split(given["hidden_states"], [config.in_channels, 2 * config.in_channels], axis=1)
    T, H, W = x.shape[2:]
    keep_BTHW = given["attention_mask"] > 0 if "attention_mask" in given else None
    grid = grid_inputs(config, (T, H, W), len(x), keep_BTHW)
    keep_BL = given["encoder_attention_mask"][:, 0] > 0
    text, keep_text = text_inputs(given["encoder_hidden_states"][:, 0], keep_BL, multiple=1)
    keep_video = grid.keep_video and tree.runtime.varying(tuple(map(tree.tensor, grid.keep_video)))
    features = timestep_features(given["timestep"])
    condition = Condition(*shown).patches(config) if config.mask_channels else None
    arrays = (x, features, text, keep_text, grid.cos_S13P, grid.sin_S13P)
    return (*map(tree.tensor, arrays), keep_video, tree.tensor(condition))


def run_transformer(tree: Tree, case: Case) -> dict[str, Any]:
    config = build_recorded(TransformerConfig, case.record["config"], case.name)
    model = build_transformer(tree, config, case.weights, case.name)
    inputs = transformer_inputs(tree, config, case)
    if "loss" in case.outputs:
        return run_gradients(tree, case, model, inputs)
    with tree.runtime.inference():
        sample = tree.numpy(tree.predict(model, *inputs))
        if any(name.startswith("block_") for name in case.outputs):
            return {**run_each_block(tree, case, model, *inputs[:-1]), "sample": sample}
    x = inputs[0]
    grid = (x.shape[2], x.shape[3] // config.patch_size, x.shape[4] // config.patch_size)
    scales = config.interpolation_scale_thw
    if cached_scales(grid, scales) != scales:
        return {"sample": cached_rope_defect(tree, case, config, grid)}
    return {"sample": sample}


def cached_scales(grid: tuple, scales: tuple) -> tuple:
    """The scales that the reference's cache, keyed by length alone, ends up using."""
    first: dict[int, float] = {}
    return tuple(first.setdefault(length, scale) for length, scale in zip(grid, scales, strict=True))


def cached_rope_defect(tree: Tree, case: Case, config: TransformerConfig, grid: tuple) -> Defect:
    """The reference caches rotary tables by length and forgets the scale. Proof that this alone is the
    difference: our model with the scales the reference ends up using equals the recorded output.
    """
    used = cached_scales(grid, config.interpolation_scale_thw)
    wrong = config.replace(
        interpolation_scale_t=used[0], interpolation_scale_h=used[1], interpolation_scale_w=used[2]
    )
    model = build_transformer(tree, wrong, case.weights, case.name)
    with tree.runtime.inference():
        as_reference = tree.numpy(tree.predict(model, *transformer_inputs(tree, wrong, case)))
    why = f"rotary tables cached by length only; ours with the scales it ends up using, {used}, must equal it"
    return Defect(as_reference, case.outputs["sample"], why)


def run_each_block(tree: Tree, case: Case, model: Any, x, features, text, *rest) -> Arrays:
    """The residual stream after some of the blocks (tokens in raster order)."""
    text_kv = tree.runtime.varying(tree.transformer.TextProjection(model)(text))
    t, (T, H, W) = tree.transformer, x.shape[2:]
    p, stride, num_blocks = model.patch, model.stride, len(model.plan)
    to_native, to_patches, arrangement_mask = t.to_native, t.frames_to_patches, t.arrangement_mask

    def residual_stream(x, features, text_kv, keep_text, cos, sin, keep_video):
        modulation, _ = model.adaln_single(features)
        hidden = model.pos_embed(to_native(to_patches(x, p), cos.shape[0], stride))
        stream = ()
        for i in range(num_blocks):
            keep = None if keep_video is None else arrangement_mask(keep_video, model.plan[i])
            key, value = text_kv[2 * i], text_kv[2 * i + 1]
            hidden = model.transformer_blocks[i](hidden, modulation, key, value, keep_text, cos, sin, keep)
            stream = (*stream, hidden)
        return stream

    stream = tree.runtime.compiled(residual_stream, model)(x, features, text_kv, *rest)
    num_tokens = T * (H // p) * (W // p)
    return {
        f"block_{i}": tree.numpy(t.to_raster(hidden, num_tokens, stride))
        for i, hidden in enumerate(stream)
        if f"block_{i}" in case.outputs
    }


def run_gradients(tree: Tree, case: Case, model: Any, inputs: tuple) -> Arrays:
    target = tree.tensor(case.inputs["target"])
    forward = tree.forward(model)

    def loss(x, features, text, keep_text, cos, sin, keep_video, condition, target):
        error = forward(x, features, text, keep_text, cos, sin, keep_video, condition) - target
        return (error * error).mean()

    value, grads = tree.runtime.value_and_grad(loss, model)(*inputs, target)
    results = {"loss": tree.numpy(value)}
    for name, grad in grads.items():
        if f"grad.{name}" in case.outputs:
            results[f"grad.{name}"] = tree.numpy(grad)
    with tree.runtime.inference():
        results["sample"] = tree.numpy(tree.predict(model, *inputs))
    return results


def run_block(tree: Tree, case: Case) -> Arrays:
    spec, given = case.record["config"], case.inputs
    heads, head_dim, stride = spec["num_attention_heads"], spec["attention_head_dim"], spec["sparse_n"]
    arrangement = "full" if not spec["sparse1d"] else GROUP if spec["sparse_group"] else SINGLE
    block = tree.transformer.Block(heads, head_dim, arrangement, tree.sequence.Sequence(stride), 1e-6)
    tree.load(block, case.weights, case.name)
    x, text = given["hidden_states"], given["encoder_hidden_states"]
    S, B, _ = x.shape
    masks = keep_masks(S, stride, B, heads, given["attention_bias"][:, 0] > -5000)
    order = native_order(S, stride)
    cos, sin = rope_table(spec["grid_thw"], head_dim)
    positions = np.minimum(order, S - 1)
    native = np.pad(x, ((0, padded_length(S, stride) - S), (0, 0), (0, 0)))[order]
    keep_text = (given["encoder_attention_bias"] > -5000)[:, :, None, :]
    keep_video = None if masks is None else masks.of(arrangement)

    def forward(x, modulation, text, keep_text, cos, sin, keep_video):
        key, value = block.attn2.to_k(text), block.attn2.to_v(text)
        return block(x, modulation, key, value, keep_text, cos, sin, keep_video)

    arguments = (
        native,
        given["timestep6"],
        text,
        keep_text,
        cos[positions][:, None],
        sin[positions][:, None],
    )
    y = tree.call(forward, *arguments, keep_video, models=(block,))
    return {"hidden_states": y[np.argsort(order)][:S]}


def run_pieces(tree: Tree, case: Case) -> Arrays:
    config = build_recorded(TransformerConfig, case.record["config"], case.name)
    model = build_transformer(tree, config, case.weights, case.name)
    given = case.inputs
    features = timestep_features(given["timestep"])
    modulation, embedded = tree.call(model.adaln_single, features, models=(model,))
    T, H, W = (n * s for n, s in zip(case.record["grid_thw"], (1, 2, 2), strict=True))
    patch, patches_to_frames = config.patch_size, tree.transformer.patches_to_frames
    frames_to_patches = tree.transformer.frames_to_patches

    def embed(latent):
        return model.pos_embed(frames_to_patches(latent, patch))

    def final(tokens, embedded):
        return patches_to_frames(model.project_out(tokens, embedded), T, H, W, patch)

    def frames(patches):
        return patches_to_frames(patches, T, H, W, patch)

    def first(tokens):
        return np.ascontiguousarray(tokens.transpose(1, 0, 2))

    return {
        "patch_embed": first(tree.call(embed, given["latent"], models=(model,))),
        "adaln_single_6d": first(modulation).reshape(len(features), -1),
        "adaln_single_embedded": embedded,
        "timestep_sinusoid": features,
        "caption_projection": tree.call(model.caption_projection, given["caption"], models=(model,)),
        "final_layer": tree.call(final, first(given["tokens"]), embedded, models=(model,)),
        "final_layer_small_amplitude": tree.call(
            final, first(given["tokens_small_amplitude"]), embedded, models=(model,)
        ),
        "unpatchify": tree.call(frames, first(given["unpatchify_in"])),
    }


def run_rope(tree: Tree, case: Case) -> dict[str, Any]:
    results: dict[str, Any] = {}
    rotate_heads = tree.attention.rotate
    for tag, spec in case.record["config"].items():
        tokens, scales = case.inputs[f"tokens_{tag}"], spec["interpolation_scale_thw"]
        S, B, N, D = tokens.shape
        cached: dict[int, float] = {}  # equal lengths share the first axis's table in the reference
        used = [cached.setdefault(n, s) for n, s in zip(spec["grid_thw"], scales, strict=True)]
        cos, sin = rope_table(spec["grid_thw"], D, used)

        def rotate(x, cos, sin, heads):
            return rotate_heads(x, cos, sin, heads)

        rotated = tree.call(rotate, tokens.reshape(S, B, N * D), cos[:, None], sin[:, None], N)
        results[f"rotated_{tag}"] = rotated.reshape(tokens.shape)
    for axis in "thw":
        results[f"positions_{axis}_a"] = NotApplicable("positions exist only inside the rotary tables")
    for name, length, dtype in (
        ("len9", 9, "float32"),
        ("len24_bf16", 24, "bfloat16"),
        ("len24_fp16", 24, "float16"),
    ):
        angles = round_float(axis_angles(length, case.outputs[f"cos_{name}"].shape[1] // 2), dtype)
        angles = np.concatenate([angles, angles], axis=1)
        results[f"cos_{name}"], results[f"sin_{name}"] = (
            round_float(f(angles), dtype) for f in (np.cos, np.sin)
        )
    return results


def run_skiparse(tree: Tree, case: Case) -> dict[str, Any]:
    """Index cases: our view of the native order must put the same tokens into every sub-sequence. The order
    within one does not matter to attention, so ours is brought to the reference's (ascending) before
    comparing.
    """
    results: dict[str, Any] = {}
    for output in case.outputs:
        kind, _, tag = output.partition(".")
        stride, length, batch = (int(part[1:]) for part in tag.split("_")[:3])
        if kind == "cross_kv_index":
            results[output] = NotApplicable(ONE_TEXT)
            continue
        padded = padded_length(length, stride)
        raster = np.arange(padded * batch).reshape(padded, batch)
        raster[length:] = -1
        native = raster[native_order(length, stride)].reshape(padded, batch, 1)
        if tag.endswith("group0"):
            folded = native.reshape(padded // stride, stride * batch)
        else:
            folded = (
                native.reshape(stride, padded // stride, batch).transpose(1, 0, 2).reshape(-1, stride * batch)
            )
        results[output] = np.sort(np.where(folded < 0, padded * batch, folded), axis=0)
        results[output][results[output] == padded * batch] = -1
    return results


def run_masks(tree: Tree, case: Case) -> dict[str, Any]:
    """Masks as kept tokens per sub-sequence; the reference's -10000 and -9980 both mean "drop"."""
    results: dict[str, Any] = {}
    heads = case.record["config"]["head_num"]
    keep_BS = case.inputs["attention_bias"][:, 0] > -5000
    B, S = keep_BS.shape
    for output, golden in case.outputs.items():
        side, n_tag, group_tag = output.split("_")
        stride = int(n_tag[1:])
        if side == "cross":
            results[output] = NotApplicable(ONE_TEXT)
            continue
        masks = keep_masks(S, stride, B, heads, keep_BS)
        assert masks is not None
        arrangement = "full" if stride == 1 else GROUP if group_tag == "group1" else SINGLE
        ours = masks.of(arrangement)
        if arrangement == GROUP:  # m (b h) 1 r -> (m b) h 1 r
            ours = ours.reshape(stride * B, heads, 1, -1)
        rows = np.where(np.broadcast_to(ours, golden.shape), 0.0, np.nan)
        results[output] = sort_mask_like(rows, S, stride, arrangement, B)
    return results


def sort_mask_like(rows: np.ndarray, S: int, stride: int, arrangement: str, B: int) -> np.ndarray:
    """Bring sub-sequences from native to raster order and write drops as the reference does."""
    order = native_order(S, stride)
    mnj = order.reshape(stride, -1, stride) if stride > 1 else order.reshape(1, -1, 1)
    tokens = {
        "full": order[None],
        SINGLE: mnj.transpose(2, 0, 1).reshape(stride, -1),
        GROUP: mnj.reshape(stride, -1),
    }[arrangement]
    tokens = np.repeat(tokens, B, axis=0)[:, None, None]
    by_raster = np.take_along_axis(rows, np.argsort(np.broadcast_to(tokens, rows.shape), axis=-1), axis=-1)
    padding = np.sort(tokens, axis=-1) >= S
    return np.where(np.isnan(by_raster), np.where(padding, -9980.0, -10000.0), by_raster).astype(np.float32)
