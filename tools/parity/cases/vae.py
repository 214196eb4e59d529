"""Golden cases of the VAE: whole models, chunked runs, wavelets, single blocks, the posterior."""

from typing import Any

import numpy as np

from common.latents import draw_latents
from common.models import CausalVAEConfig, VAEConfig
from common.tiling import TilingConfig
from tools.parity.by_name import ByName
from tools.parity.goldens import Case, UnsupportedError, build_recorded
from tools.parity.tree import Arrays, Tree

from .defect import Defect, Unsupported


def build_vae(tree: Tree, config: dict[str, Any], weights: Arrays | ByName, where: str) -> Any:
    return tree.load(tree.vae.WFVAE(build_recorded(VAEConfig, config, where)), weights, where)


def run_vae(tree: Tree, case: Case) -> dict[str, Any]:
    vae = build_vae(tree, case.record["config"], case.weights, case.name)
    if "pixels01" in case.inputs:
        return run_vae_wrapper(tree, case, vae)
    x, z = case.inputs["x"], case.inputs["z"]
    with tree.runtime.inference():
        moments = vae.encode(tree.tensor(x))
        results = {"moments": tree.numpy(moments), "decoded_z": tree.numpy(vae.decode(tree.tensor(z)))}
        mean, results["logvar"] = tree.call(tree.posterior.split_moments, results["moments"])
        results["mean"] = mean
        if "recon_mode" in case.outputs:
            results["recon_mode"] = tree.numpy(vae.decode(tree.tensor(mean)))
        if "recon_sample" in case.outputs:
            noise = case.inputs["posterior_noise.0"]
            sample = tree.call(tree.posterior.posterior_sample, results["moments"], noise)
            results["recon_sample"] = tree.numpy(vae.decode(tree.tensor(sample)))
    if "enc_l1_coeffs" in case.outputs:
        results |= wavelet_flow(tree, vae, x, z)
    return {name: results[name] for name in case.outputs if name in results}


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


def scale_and_shift(config: VAEConfig) -> tuple[np.ndarray, np.ndarray]:
    """A value for each latent channel, where the config may have one for all."""
    scale, shift = np.array(config.scale, np.float32), np.array(config.shift, np.float32)
    return np.resize(scale, config.latent_dim), np.resize(shift, config.latent_dim)


def run_vae_wrapper(tree: Tree, case: Case, vae: Any) -> Arrays:
    config = vae.config
    scale, shift = scale_and_shift(config)
    pixels = 2 * case.inputs["pixels01"] - 1
    with tree.runtime.inference():
        moments = tree.numpy(vae.encode(tree.tensor(pixels)))
        z = tree.call(tree.posterior.from_latent, case.inputs["latent_to_decode"], scale, shift)
        decoded = tree.numpy(vae.decode(tree.tensor(z))).transpose(0, 2, 1, 3, 4)
    latent = draw_latents(moments, case.inputs["posterior_noise.0"], config)
    return {"ae_norm": pixels, "latent": latent, "decoded": decoded, "ae_denorm": (decoded + 1) / 2}


def run_vae_chunks(tree: Tree, case: Case) -> dict[str, Any]:
    vae = build_vae(tree, case.record["config"], case.weights, case.name)
    results: dict[str, Any] = {}
    for tag, chunk in case.record["chunks"].items():
        with tree.runtime.inference():
            x, z = tree.tensor(case.inputs[f"x_{tag}"]), tree.tensor(case.inputs[f"z_{tag}"])
            results[f"moments_{tag}"] = tree.numpy(vae.encode(x, chunk["t_chunk_enc"]))
            decoded = tree.numpy(vae.decode(z, chunk["t_chunk_dec"]))
        last_start = chunk["decode_start_end"][-1][0]
        defect = "decode_raises" in chunk or (last_start > 0 and chunk["latent_frames"] - last_start == 1)
        if defect:
            with tree.runtime.inference():
                whole = tree.numpy(vae.decode(z))
            why = "a last chunk of one latent frame: the reference raises, or had no look-ahead before it"
            results[f"decoded_z_{tag}"] = Defect(decoded, whole, why)
        else:
            results[f"decoded_z_{tag}"] = decoded
    return results


def build_causal_vae(tree: Tree, case: Case) -> Any:
    config = build_recorded(CausalVAEConfig, case.record["config"], case.name)
    return tree.load(tree.causal_vae.CausalVAE(config), case.weights, case.name)


def run_causal_vae(tree: Tree, case: Case) -> dict[str, Any]:
    """OD-VAE, whole clips, and its wrapper with one fixed factor."""
    vae = build_causal_vae(tree, case)
    given, results = case.inputs, {}
    with tree.runtime.inference():
        if "latent_to_decode" in given:
            moments = tree.numpy(vae.encode(tree.tensor(given["x"])))
            sample = tree.call(tree.posterior.posterior_sample, moments, given["posterior_noise.0"])
            decoded = tree.numpy(vae.decode(tree.tensor(given["latent_to_decode"] / np.float32(0.18215))))
            return {"latent": sample * np.float32(0.18215), "decoded": decoded.transpose(0, 2, 1, 3, 4)}
        for tag in (name.removeprefix("x_") for name in given if name.startswith("x_")):
            moments = tree.numpy(vae.encode(tree.tensor(given[f"x_{tag}"])))
            mean, _ = tree.call(tree.posterior.split_moments, moments)
            results[f"moments_{tag}"] = moments
            results[f"decoded_z_{tag}"] = tree.numpy(vae.decode(tree.tensor(given[f"z_{tag}"])))
            results[f"recon_mode_{tag}"] = tree.numpy(vae.decode(tree.tensor(mean)))
    return results


def run_causal_vae_tiles(tree: Tree, case: Case) -> dict[str, Any]:
    """OD-VAE in tiles; each output with the reference's attributes as they were for it."""
    vae = build_causal_vae(tree, case)
    defaults, overrides, results = case.record["default_attributes"], case.record["overrides"], {}
    for output in case.outputs:
        kind, _, axis = output.rpartition("_")
        attributes = defaults | overrides.get(axis, {}) | overrides.get(output, {})
        if kind == "moments":
            x, code = case.inputs[f"x_{axis}"], tree.tiling.encode_tiled
            tiling = tiling_of(attributes, "sample", vae.config.stride_thw)
        else:
            x, code = case.inputs[f"z_{axis}"], tree.tiling.decode_tiled
            tiling = tiling_of(attributes, "latent", (1, 1, 1))
        with tree.runtime.inference():
            results[output] = tree.numpy(code(vae, tree.tensor(x), tiling))
    return results


def tiling_of(attributes: dict[str, Any], side: str, stride_thw: tuple) -> TilingConfig:
    """Our tiling from the reference's attributes: its time size is one more than the step of the windows, in
    frames of the side that is cut.
    """
    size = attributes[f"tile_{side}_min_size"] // stride_thw[1]
    step = (attributes[f"tile_{side}_min_size_t"] - 1) // stride_thw[0]
    tiling = {
        "window_frames": step + attributes["tile_overlap_t"],
        "overlap_frames": attributes["tile_overlap_t"],
        "tile_size": size,
        "overlap_size": int(size * attributes["tile_overlap_factor"]),
    }
    return build_recorded(TilingConfig, tiling, "tiling")


def run_posterior(tree: Tree, case: Case) -> Arrays:
    posterior, given = tree.posterior, case.inputs
    mean, logvar = tree.call(posterior.split_moments, given["parameters"])
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
        "small_sample": tree.call(posterior.posterior_sample, small, given["noise.0"]),
        "small_kl": over_channels_and_time(tree.call(posterior.kl_to_normal, small)),
        "small_kl_other": over_channels_and_time(tree.call(posterior.kl_between, small, other)),
        "small_nll_of_other_mean": over_channels_and_time(tree.call(posterior.nll, small, other_mean)),
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


def run_vae_blocks(tree: Tree, case: Case) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, spec in case.record["modules"].items():
        weights = case.weights_of(name)
        try:
            block = vae_block(tree, name, spec, weights)
        except UnsupportedError as error:
            unknown = [output for output in case.outputs if output.startswith(name)]
            results |= dict.fromkeys(unknown, Unsupported(str(error)))
            continue
        module = tree.load(block, weights, f"{case.name}.{name}")
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
    cls = spec["cls"]
    blocks = tree.resample if hasattr(tree.resample, cls) else tree.vae_blocks
    if not hasattr(blocks, cls):
        raise UnsupportedError(f"vae_blocks {name}: this version has no {cls}")
    norm = "groupnorm" if name.endswith(("_gn", "attn_old")) else "layernorm"
    if cls.startswith("AttnBlock"):
        return getattr(blocks, cls)(weights["q.conv.weight"].shape[0], norm)
    if cls.startswith("ResnetBlock"):
        return getattr(blocks, cls)(*widths_of(weights, "conv1"), norm)
    if not weights:
        return getattr(blocks, cls)()
    widths = widths_of(weights, "conv")
    if cls == "CausalConv3d":
        return blocks.conv3x3x3(*widths)
    if cls == "Spatial2xTime2x3DUpsample":
        return blocks.Spatial2xTime2x3DUpsample(*widths, name.removeprefix("st_up_"))
    return getattr(blocks, cls)(*widths)


def widths_of(weights: Arrays, conv: str) -> tuple[int, int]:
    """Channels into and out of a convolution, which may be wrapped in a causal one."""
    name = f"{conv}.conv.weight" if f"{conv}.conv.weight" in weights else f"{conv}.weight"
    return weights[name].shape[1], weights[name].shape[0]
