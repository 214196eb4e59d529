"""How to compute each kind of golden case with one of our trees.

Both trees have the same names, so one function serves both; it is found by the `component` of the case's
record. A function returns our outputs by the golden's names. Outputs that record a defect of the reference
are marked with what ours must equal instead.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from common import captions, metrics
from common.conditions import grid_inputs, text_inputs
from common.config import build
from common.images import to_uint8
from common.models import TransformerConfig, VAEConfig
from common.rope import axis_angles, rope_table, round_float, timestep_features
from common.samplers import sampler_table
from common.schedules import ScheduleConfig, alphas_cumprod, noise_ratios
from common.skiparse import GROUP, SINGLE, keep_masks, native_order, padded_length

from .goldens import Case

Arrays = dict[str, np.ndarray]


class Defect(NamedTuple):
    """An output in which the reference is wrong: ours must equal our own computation done another way."""

    ours: np.ndarray
    instead: np.ndarray
    why: str


class Tree:
    """One of the two trees; its modules load when first used."""

    def __init__(self, name: str, device: str = "cpu"):
        self.name = name
        self.device = self.module("runtime").setup(device)

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{self.name}.{name}")

    def __getattr__(self, name: str) -> Any:
        return self.module(name)

    def tensor(self, array: np.ndarray | None) -> Any:
        return None if array is None else self.runtime.to_tensor(array)

    def load(self, model: Any, weights: Arrays, where: str) -> Any:
        self.runtime.load_weights(model, weights, where)
        return self.runtime.place(model, self.device)

    def call(self, function: Callable, *arguments: Any, models: tuple = ()) -> Any:
        """A function of the tree, as one graph, on NumPy arrays (other arguments pass as they are)."""
        tensors = [self.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        with self.runtime.inference():
            result = self.runtime.compiled(function, *models)(*tensors)
        return self.numpy(result)

    def numpy(self, result: Any) -> Any:
        return tuple(map(self.numpy, result)) if isinstance(result, tuple) else self.runtime.to_numpy(result)


def run_case(tree: Tree, case: Case) -> dict[str, np.ndarray | Defect] | None:
    """Our outputs of a case by name, or None when this kind of case is not implemented."""
    runner = RUNNERS.get(case.record["component"])
    return None if runner is None else runner(tree, case)


# --- VAE
# ------------------------------------------------------------------------------------------------------------


def build_vae(tree: Tree, config: dict[str, Any], weights: Arrays, where: str) -> Any:
    return tree.load(tree.vae.WFVAE(build(VAEConfig, config, where)), weights, where)


def run_vae(tree: Tree, case: Case) -> dict[str, Any]:
    vae = build_vae(tree, case.record["config"], case.weights, case.name)
    if "pixels01" in case.inputs:
        return run_vae_wrapper(tree, case, vae)
    x, z = case.inputs["x"], case.inputs["z"]
    with tree.runtime.inference():
        moments = vae.encode(tree.tensor(x))
        results = {"moments": tree.numpy(moments), "decoded_z": tree.numpy(vae.decode(tree.tensor(z)))}
        mean, results["logvar"] = tree.call(tree.vae.split_moments, results["moments"])
        results["mean"] = mean
        results["recon_mode"] = tree.numpy(vae.decode(tree.tensor(mean)))
        if "recon_sample" in case.outputs:
            noise = case.inputs["posterior_noise.0"]
            sample = tree.call(tree.vae.posterior_sample, results["moments"], noise)
            results["recon_sample"] = tree.numpy(vae.decode(tree.tensor(sample)))
    if "enc_l1_coeffs" in case.outputs:
        results |= wavelet_flow(tree, vae, x, z)
    return {name: results[name] for name in case.outputs}


def wavelet_flow(tree: Tree, vae: Any, x: np.ndarray, z: np.ndarray) -> Arrays:
    """The wavelet coefficients inside encoder and decoder."""
    encoder, decoder = vae.encoder, vae.decoder
    stream, add_to_low_band = (
        tree.vae_blocks.stream,
        tree.vae.add_to_low_band,
    )  # a graph sees functions, not trees

    def encoder_bands(x_BCTHW):
        coeffs = encoder.wavelet_transform_in(x_BCTHW, True)
        l1 = encoder.wavelet_transform_l1(coeffs[:, :3], True)
        return l1, encoder.wavelet_transform_l2(l1[:, :3], True)

    def decoder_bands(z_BCTHW):
        h, _ = decoder.conv_in(z_BCTHW, (), True, True)
        h, _ = stream(decoder.mid, h, (), True, True)
        l2, _ = stream(decoder.connect_l2, h[:, -decoder.flow :], (), True, True)
        low = decoder.inverse_wavelet_transform_l2(l2, True)
        h, _ = stream(decoder.up2, h[:, : -decoder.flow], (), True, True)
        l1, _ = stream(decoder.connect_l1, h[:, -decoder.flow :], (), True, True)
        return add_to_low_band(l1, low), l2

    names = ("enc_l1_coeffs", "enc_l2_coeffs", "dec_l1_coeffs", "dec_l2_coeffs")
    bands = (*tree.call(encoder_bands, x, models=(encoder,)), *tree.call(decoder_bands, z, models=(decoder,)))
    return dict(zip(names, bands, strict=True))


def run_vae_wrapper(tree: Tree, case: Case, vae: Any) -> Arrays:
    config = vae.config
    scale = np.broadcast_to(np.float32(config.scale), (config.latent_dim,)).copy()
    shift = np.broadcast_to(np.float32(config.shift), (config.latent_dim,)).copy()
    pixels = 2 * case.inputs["pixels01"] - 1
    with tree.runtime.inference():
        moments = tree.numpy(vae.encode(tree.tensor(pixels)))
        sample = tree.call(tree.vae.posterior_sample, moments, case.inputs["posterior_noise.0"])
        z = tree.call(tree.vae.from_latent, case.inputs["latent_to_decode"], scale, shift)
        decoded = tree.numpy(vae.decode(tree.tensor(z))).transpose(0, 2, 1, 3, 4)
    latent = tree.call(tree.vae.to_latent, sample, scale, shift)
    return {"ae_norm": pixels, "latent": latent, "decoded": decoded, "ae_denorm": (decoded + 1) / 2}


def run_vae_chunks(tree: Tree, case: Case) -> dict[str, Any]:
    vae = build_vae(tree, case.record["config"], case.weights, case.name)
    results: dict[str, Any] = {}
    for tag, chunk in case.record["chunks"].items():
        with tree.runtime.inference():
            x, z = tree.tensor(case.inputs[f"x_{tag}"]), tree.tensor(case.inputs[f"z_{tag}"])
            results[f"moments_{tag}"] = tree.numpy(vae.encode(x, chunk["t_chunk_enc"]))
            decoded = tree.numpy(vae.decode(z, chunk["t_chunk_dec"]))
            whole = tree.numpy(vae.decode(z))
        last_start = chunk["decode_start_end"][-1][0]
        defect = "decode_raises" in chunk or (last_start > 0 and chunk["latent_frames"] - last_start == 1)
        if defect:
            why = "a last chunk of one latent frame: the reference raises, or had no look-ahead before it"
            results[f"decoded_z_{tag}"] = Defect(decoded, whole, why)
        else:
            results[f"decoded_z_{tag}"] = decoded
    return results


def run_posterior(tree: Tree, case: Case) -> Arrays:
    vae, given = tree.vae, case.inputs
    mean, logvar = tree.call(vae.split_moments, given["parameters"])
    std = tree.call(tree.ops.exp, 0.5 * logvar)

    def over_channels_and_time(per_element):  # the reference sums over dims 1, 2, 3 of five
        return per_element.sum(axis=(1, 2, 3))

    small, other = given["small_parameters"], given["other_parameters"]
    other_mean = other[:, : other.shape[1] // 2]
    return {
        "mean": mean,
        "mode": mean,
        "logvar": logvar,
        "std": std,
        "small_sample": tree.call(vae.posterior_sample, small, given["noise.0"]),
        "small_kl": over_channels_and_time(tree.call(vae.kl_to_normal, small)),
        "small_kl_other": over_channels_and_time(tree.call(vae.kl_between, small, other)),
        "small_nll_of_other_mean": over_channels_and_time(tree.call(vae.nll, small, other_mean)),
    }


def run_wavelets(tree: Tree, case: Case) -> Arrays:
    w, given = tree.wavelet, case.inputs
    haar3, inverse3 = w.HaarWaveletTransform3D(), w.InverseHaarWaveletTransform3D()
    haar2, inverse2 = w.HaarWaveletTransform2D(), w.InverseHaarWaveletTransform2D()

    def run(cell, x, first=True):
        return tree.call(cell, x, first, models=(cell,))

    x, one = given["x5"], given["x5_one_frame"]
    bands3, bands_one, bands2 = run(haar3, x), run(haar3, one), run(haar2, x)
    return {
        "haar3d": bands3,
        "haar3d_inverse_of_forward": run(inverse3, bands3),
        "haar3d_one_frame": bands_one,
        "haar3d_inverse_one_frame": run(inverse3, bands_one),
        "inverse3d_of_coeffs": run(inverse3, given["coeffs3d"]),
        "inverse3d_of_coeffs_not_first_chunk": run(inverse3, given["coeffs3d"], False),
        "haar2d": bands2,
        "haar2d_inverse_of_forward": run(inverse2, bands2),
        "inverse2d_of_coeffs": run(inverse2, given["coeffs2d"]),
        "haar3d_chunked_1_then_rest": np.concatenate(
            [run(haar3, x[:, :, :1]), run(haar3, x[:, :, 1:], False)], axis=2
        ),
    }


def run_vae_blocks(tree: Tree, case: Case) -> Arrays:
    results = {}
    for name, spec in case.record["modules"].items():
        weights = case.weights_of(name)
        module = tree.load(vae_block(tree, name, spec, weights), weights, f"{case.name}.{name}")
        channels = spec["input"].rpartition("_c")[2]
        for output in case.outputs:
            tag = output.removeprefix(name)
            if not output.startswith(name) or tag not in (
                "",
                "_one_frame",
                "_two_frames",
                "_small_amplitude",
            ):
                continue
            x = case.inputs[f"x{tag}_c{channels}"]
            if module.temporal:
                results[output] = tree.call(module, x, (), True, True, models=(module,))[0]
            else:
                results[output] = tree.call(module, x, models=(module,))
    return results


def vae_block(tree: Tree, name: str, spec: dict[str, str], weights: Arrays) -> Any:
    """The module a `vae_blocks` entry names, with the widths its weights have."""
    blocks, cls = tree.vae_blocks, spec["cls"]
    norm = "groupnorm" if name.endswith(("_gn", "attn_old")) else "layernorm"
    if cls.startswith("AttnBlock"):
        return getattr(blocks, cls)(weights["q.conv.weight"].shape[0], norm)
    if cls.startswith("ResnetBlock"):
        conv = weights.get("conv1.conv.weight", weights.get("conv1.weight"))
        assert conv is not None
        return getattr(blocks, cls)(conv.shape[1], conv.shape[0], norm)
    if not weights:
        return getattr(blocks, cls)()
    conv = weights.get("conv.conv.weight", weights.get("conv.weight"))
    assert conv is not None
    widths = (conv.shape[1], conv.shape[0])
    if cls == "CausalConv3d":
        return blocks.conv3x3x3(*widths)
    if cls == "Spatial2xTime2x3DUpsample":
        return blocks.Spatial2xTime2x3DUpsample(*widths, name.removeprefix("st_up_"))
    return getattr(blocks, cls)(*widths)


# --- transformer
# ----------------------------------------------------------------------------------------------------


def build_transformer(tree: Tree, config: TransformerConfig, weights: Arrays, where: str) -> Any:
    return tree.load(tree.transformer.Transformer(config), weights, where)


def transformer_inputs(tree: Tree, config: TransformerConfig, case: Case) -> tuple:
    """(latents, time features, text, text mask, cos, sin, video masks) of a case, as tensors."""
    given = case.inputs
    x = given["hidden_states"]
    T, H, W = x.shape[2:]
    keep_BTHW = given["attention_mask"] > 0
    grid = grid_inputs(config, (T, H, W), len(x), keep_BTHW)
    keep_BL = given["encoder_attention_mask"][:, 0] > 0
    text, keep_text = text_inputs(given["encoder_hidden_states"][:, 0], keep_BL, multiple=1)
    keep_video = grid.keep_video and tree.runtime.varying(tuple(map(tree.tensor, grid.keep_video)))
    features = timestep_features(given["timestep"])
    arrays = (x, features, text, keep_text, grid.cos_S13P, grid.sin_S13P)
    return (*map(tree.tensor, arrays), keep_video)


def run_transformer(tree: Tree, case: Case) -> dict[str, Any]:
    config = build(TransformerConfig, case.record["config"], case.name)
    model = build_transformer(tree, config, case.weights, case.name)
    text_projection = tree.transformer.TextProjection(model)
    x, features, text, *rest = transformer_inputs(tree, config, case)
    if "loss" in case.outputs:
        return run_gradients(tree, case, model, text_projection, (x, features, text, *rest))
    with tree.runtime.inference():
        text_kv = tree.runtime.varying(text_projection(text))
        blocks = [name for name in case.outputs if name.startswith("block_")]
        if blocks:
            return run_each_block(tree, case, model, x, features, text_kv, rest)
        sample = tree.numpy(model(x, features, text_kv, *rest))
    grid = (x.shape[2], x.shape[3] // config.patch_size, x.shape[4] // config.patch_size)
    scales = config.interpolation_scale_thw
    if len(set(grid)) < 3 and len(set(scales)) > 1:
        return {"sample": cached_rope_defect(tree, case, config, grid)}
    return {"sample": sample}


def cached_rope_defect(tree: Tree, case: Case, config: TransformerConfig, grid: tuple) -> Defect:
    """The reference caches rotary tables by length and forgets the scale. Proof that this alone is the
    difference: our model with the scales the reference ends up using equals the recorded output.
    """
    first_scale: dict[int, float] = {}
    used = tuple(
        first_scale.setdefault(n, s) for n, s in zip(grid, config.interpolation_scale_thw, strict=True)
    )
    wrong = config.replace(
        interpolation_scale_t=used[0], interpolation_scale_h=used[1], interpolation_scale_w=used[2]
    )
    model = build_transformer(tree, wrong, case.weights, case.name)
    x, features, text, *rest = transformer_inputs(tree, wrong, case)
    with tree.runtime.inference():
        text_kv = tree.runtime.varying(tree.transformer.TextProjection(model)(text))
        as_reference = tree.numpy(model(x, features, text_kv, *rest))
    why = f"rotary tables cached by length only; ours with the scales it ends up using, {used}, must equal it"
    return Defect(as_reference, case.outputs["sample"], why)


def run_each_block(tree: Tree, case: Case, model: Any, x, features, text_kv, rest) -> Arrays:
    """The residual stream after some of the blocks (tokens in raster order), and the model's output."""
    t, (T, H, W) = tree.transformer, x.shape[2:]
    p, stride, num_blocks = model.patch, model.stride, len(model.plan)
    to_native, arrangement_mask = t.to_native, t.arrangement_mask

    def residual_stream(x, features, text_kv, keep_text, cos, sin, keep_video):
        modulation, _ = model.adaln_single(features)
        hidden = to_native(model.pos_embed(x), cos.shape[0], stride)
        stream = ()
        for i in range(num_blocks):
            keep = None if keep_video is None else arrangement_mask(keep_video, model.plan[i])
            key, value = text_kv[2 * i], text_kv[2 * i + 1]
            hidden = model.transformer_blocks[i](hidden, modulation, key, value, keep_text, cos, sin, keep)
            stream = (*stream, hidden)
        return stream

    stream = tree.runtime.compiled(residual_stream, model)(x, features, text_kv, *rest)
    num_tokens = T * (H // p) * (W // p)
    results = {
        f"block_{i}": tree.numpy(t.to_raster(hidden, num_tokens, stride))
        for i, hidden in enumerate(stream)
        if f"block_{i}" in case.outputs
    }
    return {**results, "sample": tree.numpy(model(x, features, text_kv, *rest))}


def run_gradients(tree: Tree, case: Case, model: Any, text_projection: Any, inputs: tuple) -> Arrays:
    x, features, text, *rest = inputs
    target = tree.tensor(case.inputs["target"])

    def loss(x, features, text, keep_text, cos, sin, keep_video, target):
        error = model(x, features, text_projection(text), keep_text, cos, sin, keep_video) - target
        return (error * error).mean()

    value, grads = tree.runtime.value_and_grad(loss, model)(x, features, text, *rest, target)
    results = {"loss": tree.numpy(value)}
    for output in case.outputs:
        if output.startswith("grad."):
            results[output] = tree.numpy(grads[output.removeprefix("grad.")])
    with tree.runtime.inference():
        results["sample"] = tree.numpy(model(x, features, tree.runtime.varying(text_projection(text)), *rest))
    return results


def run_block(tree: Tree, case: Case) -> Arrays:
    spec, given = case.record["config"], case.inputs
    heads, head_dim, stride = spec["num_attention_heads"], spec["attention_head_dim"], spec["sparse_n"]
    arrangement = "full" if not spec["sparse1d"] else GROUP if spec["sparse_group"] else SINGLE
    block = tree.transformer.Block(heads, head_dim, arrangement, stride, 1e-6)
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
    config = build(TransformerConfig, case.record["config"], case.name)
    model = build_transformer(tree, config, case.weights, case.name)
    given = case.inputs
    features = timestep_features(given["timestep"])
    modulation, embedded = tree.call(model.adaln_single, features, models=(model,))
    T, H, W = (n * s for n, s in zip(case.record["grid_thw"], (1, 2, 2), strict=True))
    patch, patches_to_frames = config.patch_size, tree.transformer.patches_to_frames

    def final(tokens, embedded):
        return model.unpatchify(tokens, embedded, T, H, W)

    def frames(patches):
        return patches_to_frames(patches, T, H, W, patch)

    def first(tokens):
        return np.ascontiguousarray(tokens.transpose(1, 0, 2))

    return {
        "patch_embed": first(tree.call(model.pos_embed, given["latent"], models=(model,))),
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


def run_rope(tree: Tree, case: Case) -> Arrays:
    results: Arrays = {}
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
    B = case.record["config"]["a"]["batch"]
    grids = np.meshgrid(*map(np.arange, case.record["config"]["a"]["grid_thw"]), indexing="ij")
    for axis, grid in zip("thw", grids, strict=True):
        results[f"positions_{axis}_a"] = np.repeat(grid.reshape(-1, 1), B, axis=1)
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


def run_skiparse(tree: Tree, case: Case) -> Arrays:
    """Index cases: our view of the native order must put the same tokens into every sub-sequence. The order
    within one does not matter to attention, so ours is brought to the reference's (ascending) before
    comparing.
    """
    results = {}
    for output in case.outputs:
        kind, _, tag = output.partition(".")
        stride, length, batch = (int(part[1:]) for part in tag.split("_")[:3])
        if kind == "cross_kv_index":
            text = np.arange(3 * batch).reshape(3, batch)
            results[output] = np.tile(
                text, (1, stride)
            )  # attended once by every query, so never repeated here
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


def run_masks(tree: Tree, case: Case) -> Arrays:
    """Masks as kept tokens per sub-sequence; the reference's -10000 and -9980 both mean "drop"."""
    results: Arrays = {}
    heads = case.record["config"]["head_num"]
    keep_BS = case.inputs["attention_bias"][:, 0] > -5000
    B, S = keep_BS.shape
    for output, golden in case.outputs.items():
        side, n_tag, group_tag = output.split("_")
        stride = int(n_tag[1:])
        if side == "cross":  # one text mask for every sub-sequence
            ours = np.tile(case.inputs["encoder_attention_bias"] > -5000, (stride, 1, 1))[:, :, None]
            results[output] = np.where(np.broadcast_to(ours, golden.shape), 0.0, -10000.0).astype(np.float32)
            continue
        masks = keep_masks(S, stride, B, heads, keep_BS)
        assert masks is not None
        arrangement = "full" if stride == 1 else GROUP if group_tag == "group1" else SINGLE
        ours = masks.of(arrangement)
        if arrangement == GROUP:  # m (b h) 1 r -> (m b) h 1 r
            ours = ours.reshape(stride * B, heads, 1, -1)
        rows = np.where(np.broadcast_to(ours, golden.shape), 0.0, np.nan)
        results[output] = sort_mask_like(rows, golden, S, stride, arrangement, B)
    return results


def sort_mask_like(
    rows: np.ndarray, golden: np.ndarray, S: int, stride: int, arrangement: str, B: int
) -> np.ndarray:
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


# --- sampling
# -------------------------------------------------------------------------------------------------------


def run_sampling(tree: Tree, case: Case) -> dict[str, Any]:
    """A whole pipeline with the recorded noise: text in, uint8 frames out."""
    record, given = case.record, case.inputs
    vae = build_vae(tree, record["config"]["vae"], case.weights_of("vae"), case.name)
    config = build(TransformerConfig, record["config"]["transformer"], case.name)
    model = build_transformer(tree, config, case.weights_of("transformer"), case.name)
    call, settings = record["call"], record["scheduler_config"]
    table = sampler_table(
        record["sampler_args"]["sample_method"],
        call["num_inference_steps"],
        schedule_of(settings),
        settings["prediction_type"],
        settings["timestep_spacing"],
    )
    copies, guided = call["num_samples_per_prompt"], call["guidance_scale"] != 1.0
    text = np.repeat(given["prompt_embeds"], copies, axis=0)
    keep = np.repeat(given["prompt_attention_mask"] > 0, copies, axis=0)
    if guided:
        text = np.concatenate([np.repeat(given["negative_prompt_embeds"], copies, axis=0), text])
        keep = np.concatenate([np.repeat(given["negative_prompt_attention_mask"] > 0, copies, axis=0), keep])
    draws = case.numbered("noise")
    latent_shape = draws[0].shape
    results: dict[str, Any] = {}
    outputs = []

    def record_step(step):
        results[f"latents_after_step_{step.index}"] = tree.numpy(step.latent_BCTHW)
        outputs.append(tree.numpy(step.output_GCTHW))

    latents = tree.pipeline.denoise(
        model,
        table,
        text,
        keep,
        latent_shape,
        draws.__getitem__,
        call["guidance_scale"],
        call["guidance_rescale"],
        record_step,
    )
    results |= {f"model_output_{i}": output for i, output in enumerate(outputs)}
    doubled = np.concatenate([draws[0], draws[0]]) if guided else draws[0]
    results["first_model_input"] = (table.input_scale_R[0] * table.init_noise_sigma * doubled).astype(
        np.float32
    )
    results["timesteps"] = table.timesteps_R
    results["model_timesteps"] = np.repeat(table.timesteps_R[:, None], len(text), axis=1)
    if "sigmas" in case.outputs:
        results["sigmas"] = np.append(noise_ratios(schedule_of(settings), table.timesteps_R), 0.0)
    decoded = tree.pipeline.decode(vae, latents)
    results["decoded_float"] = decoded.transpose(0, 2, 1, 3, 4)
    results["video_uint8"] = np.stack([to_uint8(video) for video in decoded])
    return {name: results[name] for name in case.outputs}


def schedule_of(settings: dict[str, Any]) -> ScheduleConfig:
    """Our schedule from a recorded scheduler config."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
    return ScheduleConfig(**{name: settings[name] for name in names if name in settings})


def run_schedulers(tree: Tree, case: Case) -> Arrays:
    """Every sampler's table, stepped in NumPy through the recorded model outputs."""
    results: Arrays = {}
    zero_snr = ScheduleConfig(rescale_betas_zero_snr=True)
    v15 = ScheduleConfig(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    sets: dict[str, tuple[ScheduleConfig, Any, Any]] = {
        "zsnr_v": (zero_snr, "v_prediction", "trailing"),
        "plain_eps": (ScheduleConfig(), "epsilon", "leading"),
        "v15_v": (v15, "v_prediction", "trailing"),
    }
    for key, info in case.record["info"].items():
        if info["raises"]:
            continue  # the reference cannot build it, so there is nothing recorded
        method, _, flags = key.partition(".")
        schedule, prediction, spacing = sets[flags]
        if method == "CogVideoX":  # ignores the schedule it is given
            schedule = v15.replace(
                snr_shift_scale=3.0, rescale_betas_zero_snr=schedule.rescale_betas_zero_snr
            )
        if method == "PNDM":  # knows no zero terminal SNR
            schedule = schedule.replace(rescale_betas_zero_snr=False)
        table = sampler_table(
            method, case.record["config"]["num_inference_steps"], schedule, prediction, spacing
        )
        results |= {
            f"{key}.{name}": array for name, array in step_through(case, key, table, schedule).items()
        }
    return {name: results[name] for name in case.outputs if name in results}


def step_through(case: Case, key: str, table: Any, schedule: ScheduleConfig) -> Arrays:
    signal = alphas_cumprod(schedule)
    x = table.init_noise_sigma * case.inputs["initial_noise"].astype(np.float64)
    results = {
        "timesteps": table.timesteps_R,
        "alphas_cumprod_every_37": signal[::37],
        "alphas_cumprod_last": signal[-1:],
        "scaled_model_input_0": table.input_scale_R[0] * x,
    }
    if f"{key}.sigmas" in case.outputs:
        results["sigmas"] = np.append(noise_ratios(schedule, table.timesteps_R), 0.0)
    draws = case.numbered(f"noise.{key}")
    state = (None, ())
    for row in range(case.num_outputs(f"{key}.sample_after_")):
        noise = draws[row] if table.draws_noise_R[row] else None
        x, state = table.step_numpy(row, x, case.inputs[f"model_output_{row}"], state, noise)
        results[f"sample_after_{row}"] = x
    return results


# --- text and metrics
# -----------------------------------------------------------------------------------------------


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
    encoder = tree.text.TextEncoder.from_weights("mt5", case.record["full_config"], case.weights, tree.device)
    with tree.runtime.inference():
        states = encoder(case.inputs["input_ids"], case.inputs["attention_mask"] > 0)
    return {"last_hidden_state": tree.numpy(states)}


RUNNERS: dict[str, Callable[[Tree, Case], dict[str, Any]]] = {
    "wfvae": run_vae,
    "wfvae-tiling": run_vae_chunks,
    "vae-posterior": run_posterior,
    "wavelet": run_wavelets,
    "vae-blocks": run_vae_blocks,
    "dit-t2v": run_transformer,
    "dit-skiparse": lambda tree, case: (run_masks if "attention_bias" in case.inputs else run_skiparse)(
        tree, case
    ),
    "dit-rope": run_rope,
    "dit-pieces": run_pieces,
    "dit-block": run_block,
    "sampling-t2v": run_sampling,
    "schedulers": run_schedulers,
    "data-captions": run_captions,
    "metrics": run_metrics,
    "text-encoder": run_text_encoder,
}
