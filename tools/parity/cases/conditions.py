"""Golden cases of what an image-to-video model is shown: tasks, masks, noise on given frames, pictures."""

from typing import Any, NamedTuple

import numpy as np

from common.given import Given, fits_of
from common.guidance import Guidance
from common.latents import draw_latents
from common.masks import (
    Condition,
    add_noise,
    compress_mask,
    generate_mask,
    given_frames,
    masked,
    shares_of,
)
from common.windows import Window, window_pixels
from tools.parity.goldens import Case
from tools.parity.tree import Arrays, Tree


def run_mask_pieces(tree: Tree, case: Case) -> dict[str, Any]:
    """The pieces alone."""
    if case.data:
        return run_tasks(case)
    if any(name.startswith("compressed") for name in case.outputs):
        settings = case.record["config"]
        stride = settings["ae_stride_t"], settings["ae_stride_h"], settings["ae_stride_w"]
        given = {name: f"mask_{name.removeprefix('compressed_')}" for name in case.outputs}
        given = {name: mask.replace("mask_framemask", "framemask") for name, mask in given.items()}
        return {name: compress_mask(case.inputs[mask], stride) for name, mask in given.items()}
    return {"noisy": run_noise(case)}


class Recorded:
    """Draws of the reference, in order."""

    def __init__(self, draws: list):
        self.left = iter(draws)

    def draw(self, *bounds: int) -> Any:
        """The next one, whatever was asked for."""
        return next(self.left)[1]


def run_tasks(case: Case) -> dict[str, Any]:
    """Which frames each task gives, with the recorded choices, and how ratios become shares."""
    found, wanted = [], []
    for record in case.data["records"]:
        recorded = Recorded(record["draws"])
        kind, T = record["mask_type"], record["num_frames"]
        ratios = record["min_clear_ratio"], record["max_clear_ratio"]
        given_T = given_frames(kind, T, recorded.draw, recorded.draw, ratios)
        generate_B1THW = (~given_T).astype(np.float32).reshape(1, 1, T, 1, 1)
        pixels = masked(np.full((1, 1, T, 1, 1), 7.0, np.float32), generate_B1THW).ravel()
        ours = [np.flatnonzero(given_T).tolist(), generate_B1THW.ravel().tolist(), (pixels == 7).tolist()]
        found.append([*ours, next(recorded.left, None)])
        shown = [pixel == 7 for pixel in record["masked_pixel_per_frame"]]
        wanted.append([record["kept_frames"], record["mask_per_frame"], shown, None])
    results: dict[str, Any] = {"records": np.array(found == wanted)}
    for name, ratios in case.data["ratio_normalisation"].items():
        shares, golden = shares_of(ratios["given"]), ratios["normalised"]
        close = np.allclose(list(shares.values()), list(golden.values()), atol=1e-12)
        results[f"ratio_normalisation.{name}"] = np.array(close and shares.keys() == golden.keys())
    picks = []
    for record in case.data["ratio_picks"]:
        recorded = Recorded(record["draws"])
        (kind,) = recorded.draw()
        given_T = given_frames(kind, 9, recorded.draw, recorded.draw)
        picks.append(np.flatnonzero(given_T).tolist() == record["kept_frames"])
    return {**results, "ratio_picks": np.array(picks)}


def run_noise(case: Case) -> np.ndarray:
    """Noise on what is given, unless the recorded draw says none."""
    pixels = case.inputs["masked_pixel_values"]
    if case.record["python_random_draw"] < case.record["config"]["clear_ratio"]:
        return pixels
    sigma_B, noise = case.numbered("draw")
    return add_noise(pixels, case.inputs["mask"], noise, np.exp(sigma_B))


def encode_condition(
    tree: Tree, vae: Any, shown_BCTHW: np.ndarray, generate_B1THW: np.ndarray, noise: np.ndarray
) -> Condition:
    """What the model is shown, by the tree's VAE and the recorded posterior noise."""
    moments = tree.pipeline.encode(vae, shown_BCTHW)
    latent = draw_latents(moments, noise, vae.config)
    return Condition(latent, compress_mask(generate_B1THW, vae.config.stride_thw))


def guidance_of(call: dict[str, Any]) -> Guidance:
    """The guidance of a recorded pipeline's call."""
    return Guidance(call["guidance_scale"], call.get("guidance_rescale", 0.0))


class ShownGiven(NamedTuple):
    """What a recorded pipeline was given, and what its model was shown."""

    results: Arrays
    condition: Condition
    draws: list[np.ndarray]  # those left for the sampler


def show_given(tree: Tree, case: Case, vae: Any) -> ShownGiven:
    """From pictures or a clip to the condition, with the recorded noise: the sampler's first draw, then those
    for noise on pixels, the VAE's, and the sampler's others.
    """
    call, (first, *rest) = case.record["call"], case.numbered("noise")
    frames_NCHW = case.outputs["conditional_frames_after_resize"]  # ours may be a grey level apart
    places, (_, _, H, W) = given_places(case, len(frames_NCHW)), frames_NCHW.shape
    given = Given(frames_NCHW[: len(places)].transpose(0, 2, 3, 1), tuple(places), (H, W))
    x_BCTHW, given_BT = window_pixels(Window(0, call["num_frames"], 0), [given], None)
    generate_B1THW = generate_mask(given_BT, None, H, W)
    if call["noise_strength"]:
        log_sigma_B, noise, *rest = rest
        x_BCTHW = add_noise(x_BCTHW, generate_B1THW, noise, np.exp(log_sigma_B))
    posterior_noise, *rest = rest
    condition = encode_condition(tree, vae, x_BCTHW, generate_B1THW, posterior_noise)
    copies = 2 if guidance_of(call).on else 1
    results = {
        **fit_given(case),
        "masked_video_before_vae": x_BCTHW,
        "masked_latents": np.repeat(condition.latent_BCTHW, copies, axis=0),
        "mask_channels": np.repeat(condition.mask_BMTHW, copies, axis=0),
    }
    return ShownGiven(results, condition, [first, *rest])


def given_places(case: Case, num_given: int) -> list[int]:
    """Which frames of the video those are; of a clip to be continued, a recorded draw says how many."""
    resolved, total = case.record["resolved"], case.record["call"]["num_frames"]
    if resolved["indices"] is not None:
        return [index % total for index in resolved["indices"]]
    recorded = Recorded(case.record["python_random_draws"])
    given_T = given_frames(resolved["mask_type"], num_given, recorded.draw, recorded.draw)
    return np.flatnonzero(given_T).tolist()


def fit_given(case: Case) -> Arrays:
    """The recorded pictures or frames, cut and scaled by ours."""
    call, given = case.record["call"], case.inputs
    if "video_frames" in given:
        pictures = tuple(given["video_frames"].transpose(0, 2, 3, 1))
    else:
        pictures = tuple(given[name] for name in sorted(given) if name.startswith("image_"))
    sizes = [(picture.shape[0], picture.shape[1]) for picture in pictures]
    max_hxw = None if call["crop_for_hw"] else call["max_hxw"]
    fits = fits_of(sizes, (call["height"], call["width"]), max_hxw)
    frames = [np.rint(fit(picture[None])[0]) for fit, picture in zip(fits, pictures, strict=True)]
    return {"conditional_frames_after_resize": np.stack(frames).astype(np.uint8).transpose(0, 3, 1, 2)}
