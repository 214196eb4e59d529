"""What a sampling run makes, before a model is loaded: sizes, windows, and what is given of each video."""

import math
from typing import NamedTuple

from .data.buckets import Bucket
from .errors import InputError
from .given import Given, check_given, read_given
from .model_record import read_record
from .models import TransformerConfig, VAEConfig
from .runs import SampleConfig, check_chunks, latent_size
from .sharing import check_tokens
from .trained_size import trained_frames, warnings_of
from .windows import Window, plan_windows


class VideoPlan(NamedTuple):
    """What is to be made."""

    windows: list[Window]  # of every video
    given: list[Given]  # of each prompt
    warnings: list[str]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each prompt's videos."""
        return [entry.size for entry in self.given]


def plan_videos(
    config: SampleConfig, num_prompts: int, vae: VAEConfig, transformer: TransformerConfig
) -> VideoPlan:
    """Read what is given, and see that models and ranks can make it.

    Raises:
        InputError: what is given cannot be read or does not fit the model, or a size that cannot be made.
    """
    given = read_given(config, num_prompts, config.fps)
    check_given(given, transformer)
    windows = _windows(config, vae, transformer)
    latent_frames = (windows[0].num_frames - 1) // vae.stride_thw[0] + 1
    if 0 < config.vae_chunk_frames < latent_frames - 1:  # now, not when all is denoised
        check_chunks(vae.norm_type, config.vae_chunk_frames)
    path = config.transformer.path
    sizes = read_record(path).sizes if path is not None else ()
    found = [warning for entry in given for warning in entry.warnings]
    for size in dict.fromkeys(entry.size for entry in given):
        shape = Bucket(windows[0].num_frames, *size)
        num_tokens = math.prod(latent_size(shape, vae, transformer)) // transformer.patch_size**2
        check_tokens(config.parallel.sequence, transformer, num_tokens)
        found += warnings_of(transformer, vae, *shape, sizes=sizes)
    return VideoPlan(windows, given, list(dict.fromkeys(found)))


def _windows(config: SampleConfig, vae: VAEConfig, transformer: TransformerConfig) -> list[Window]:
    """One for a text-to-video model; else of the trained length, unless told."""
    if not transformer.mask_channels:
        idle = [key for key in ("window_frames", "overlap_frames") if getattr(config, key)]
        if idle:
            raise InputError(f"{idle[0]}: a text-to-video transformer makes a video at once; leave it out")
        return [Window(0, config.num_frames, 0)]
    stride = vae.stride_thw[0]
    window = config.window_frames or trained_frames(transformer, vae)
    if config.num_frames <= window:
        return [Window(0, config.num_frames, 0)]
    if window == 1 or (window - 1) % stride:
        raise InputError(
            f"window_frames: got {window}, wanted a multiple of {stride} plus 1, from {stride + 1} on"
        )
    quarter = max(1, round((window - 1) / stride / 4)) * stride + 1
    return plan_windows(config.num_frames, window, config.overlap_frames or min(quarter, window - stride))
