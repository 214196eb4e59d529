"""A clip through the VAE and back, with PSNR and SSIM: python -m ms.reconstruct CONFIG input=clip.mp4
[key=value ...]
"""

from pathlib import Path
from typing import Any

import numpy as np

from common import cli
from common.images import resize_crop, side_by_side, to_model, to_uint8
from common.metrics import psnr_ssim_T
from common.noise import normal
from common.outputs import check_free, digest, free_stem, shortened, write_frames, write_tensors
from common.runs import ReconstructConfig, RoundTripConfig, resolve_vae
from common.video import VideoReader

from . import runtime
from .loading import load_vae
from .posterior import posterior_sample, split_moments
from .tiling import decode_tiled, encode_tiled
from .vae import check_clip

USAGE = """
python -m ms.reconstruct CONFIG [key=value ...]
    python -m ms.reconstruct configs/reconstruct_demo.yaml input=clip.mp4 num_frames=33 height=256 width=256
"""


def reconstruct(config: ReconstructConfig) -> None:
    """Write the reconstruction, a side-by-side with the original, and a report; print the metrics."""
    device = runtime.setup(config.device)
    runtime.check_dtypes(device, {"vae_dtype": config.vae_dtype})
    runtime.compile_operators(device, config.op_compile)
    vae_config = resolve_vae(config.vae)
    config.check_vae(vae_config)
    check_clip(vae_config, (1, 3, config.num_frames, config.height, config.width))
    folder = cli.prepare_folder(config.output)
    stem = f"{shortened(Path(config.input).stem)}_restored"  # never the name of the input
    check_free(folder, stem, config, config.overwrite)
    watch = cli.Stopwatch()

    with watch.stage("read"), VideoReader(config.input) as reader:
        stop = config.start + config.num_frames * config.stride
        original_THWC = resize_crop(
            reader.frames(range(config.start, stop, config.stride)), config.height, config.width
        )
        fps = reader.fps / config.stride
    with watch.stage("load"):
        vae = load_vae(config.vae, vae_config, config.vae_dtype, device)
    with watch.stage("vae"):
        x_BCTHW = to_model(original_THWC)
        restored_THWC = to_uint8(round_trip(vae, x_BCTHW, config)[0])

    psnr, ssim = (float(values_T.mean()) for values_T in psnr_ssim_T(original_THWC, restored_THWC))
    content = digest(restored_THWC)
    stem = free_stem(folder, stem, content, config.overwrite)
    with watch.stage("write"):
        names = write_frames(folder, stem, restored_THWC, fps)
        names += write_frames(folder, f"{stem}_beside", side_by_side(original_THWC, restored_THWC), fps)
        if config.save_tensors:
            write_tensors(
                folder / f"{stem}.safetensors", frames_THWC=restored_THWC, original_THWC=original_THWC
            )
    cli.write_report(
        folder / f"{stem}.json",
        config,
        psnr_db=round(psnr, 3),
        ssim=round(ssim, 4),
        files=names,
        sha256=content,
        device=runtime.device_name(device),
        versions=runtime.versions(),
        seconds=watch.seconds,
        peak_memory_mb=round(runtime.peak_memory_mb(device), 1),
    )
    print(f"{folder / names[0]}  PSNR {psnr:.2f} dB  SSIM {ssim:.4f}  ({len(restored_THWC)} frames)")


def round_trip(vae: Any, x_BCTHW: np.ndarray, config: RoundTripConfig, index: int = 0) -> np.ndarray:
    """Encode and decode; the posterior's mean unless `sample_posterior`.

    Args:
        vae: WFVAE or CausalVAE.
        index: number of the first clip, whose noise it draws; the others follow.
    """
    device = runtime.device_of(vae)
    with runtime.inference():
        x = runtime.to_tensor(x_BCTHW, device, config.vae_dtype)
        if config.encode_tiling is None:
            moments = vae.encode(x, config.chunk_frames)
        else:
            moments = encode_tiled(vae, x, config.encode_tiling)
        if config.sample_posterior:
            B, _, T, H, W = moments.shape
            shape = (1, vae.config.latent_dim, T, H, W)
            noise = np.concatenate([normal(shape, config.seed, index + i) for i in range(B)])
            z = posterior_sample(moments, runtime.to_tensor(noise, device, config.vae_dtype))
        else:
            z = split_moments(moments)[0]
        if config.decode_tiling is not None:
            return runtime.to_numpy(decode_tiled(vae, z, config.decode_tiling))
        return runtime.to_numpy(vae.decode(z, config.chunk_frames // vae.config.stride_thw[0]))


if __name__ == "__main__":
    cli.main(ReconstructConfig, reconstruct, USAGE)
