"""What the transformer is conditioned on and trained on: latents of clips, states of captions. Both encoders
are frozen.

Shapes: B clips, Z latent channels, T frames, H height, W width; L text tokens, E text width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
from mindspore import nn

from common.cli import Stopwatch
from common.conditions import trim_text
from common.errors import InputError
from common.models import TransformerConfig, VAEConfig
from common.runs import ModelSource, check_chunks
from common.t2v_training import T2VTrainConfig
from common.text import TextConfig, tokenize

from . import runtime
from .loading import load_vae
from .long_video import VideoMaker
from .pipeline import LatentSampler, encode
from .text import TextEncoder
from .vae import WFVAE

SHOWN = 10  # messages about captions that were cut


class ClipEncoder:
    """Pixels to the moments of the VAE's posterior."""

    def __init__(
        self,
        source: ModelSource,
        config: VAEConfig,
        dtype: str,
        device: str,
        chunk_frames: int = 0,
        on_host: bool = False,
    ):
        """
        Args:
            chunk_frames: pixel frames encoded at a time after the first; 0: the whole clip.
            on_host: the VAE rests in the host's memory between uses.

        Raises:
            InputError: the VAE cannot encode in chunks, or not in these.
        """
        if chunk_frames:
            check_chunks(config.norm_type, chunk_frames, config.stride_thw[0])
        self.vae: WFVAE = load_vae(source, config, dtype, device)
        self.chunk_frames = chunk_frames
        self.at_work = resting(self.vae, device, on_host)

    def __call__(self, x_BCTHW: np.ndarray, parts: int = 1) -> np.ndarray:
        """moments (B,2Z,T',H/8,W/8), float32; the clips go through in `parts`, one after the other."""
        with self.at_work():
            found = [encode(self.vae, part, self.chunk_frames) for part in split(x_BCTHW, parts)]
        return np.concatenate(found)


class CaptionEncoder:
    """Captions to text states."""

    def __init__(self, config: TextConfig, device: str, width: int | None = None, on_host: bool = False):
        """
        Args:
            width: E that the transformer wants.
            on_host: the encoder rests in the host's memory between uses.

        Raises:
            InputError: the encoder's is another.
        """
        self.config = config
        self.encoder = TextEncoder(config, device)
        if width not in (None, self.encoder.width):
            raise InputError(
                f"text: the encoder's states are {self.encoder.width} wide, the transformer wants {width}; "
                "use the text encoder the transformer is trained with"
            )
        self.at_work = resting(self.encoder.model, device, on_host)
        self.num_cut = 0  # captions longer than the encoder takes
        self.cut: list[str] = []  # a sentence for each of the first of them

    def __call__(self, captions: Sequence[str], parts: int = 1) -> tuple:
        """States (B,L,E) float32 and which tokens are there (B,L), padded to the encoder's length.

        The captions go through in `parts`, one after the other.
        """
        ids_BL, keep_BL, cut = tokenize(self.config, captions)
        self.num_cut += len(cut)
        self.cut += cut[: SHOWN - len(self.cut)]
        with runtime.inference(), self.at_work():
            pairs = zip(split(ids_BL, parts), split(keep_BL, parts))
            found = [runtime.to_numpy(self.encoder(ids, keep)).astype(np.float32) for ids, keep in pairs]
        return np.concatenate(found), keep_BL


def split(x: np.ndarray, parts: int) -> list[np.ndarray]:
    """As many parts, or as many as there are."""
    return np.array_split(x, min(len(x), parts))


def resting(model: nn.Cell, device: str, on_host: bool) -> Callable[[], AbstractContextManager]:
    """A context in which a model may be used; outside it rests in the host's memory, if it shall."""
    if not on_host:
        return nullcontext
    with runtime.on_device(model, device):
        pass
    return partial(runtime.on_device, model, device)


class Encoders:
    """The encoders that a training run needs: none for what a cache has already."""

    def __init__(self, config: T2VTrainConfig, vae_config: VAEConfig, model: TransformerConfig, device: str):
        self.config = config
        validation = config.validation
        sections = [config.data, *([validation.data] if validation and validation.data else [])]
        live = any(data.encoded is None for data in sections)
        prompts = validation.prompts if validation else ()
        self.clips = self.captions = self.prompts = None
        self.cut: list[str] = []  # about prompts longer than the encoder takes
        if not (live or prompts):
            return
        width, on_host = model.caption_channels, config.encoders_on_host
        captions = CaptionEncoder(config.text, device, width, on_host)
        if validation and prompts:
            self.prompts = trim_text(*captions([validation.negative_prompt, *prompts], config.accumulate))
            self.cut, captions.cut, captions.num_cut = captions.cut, [], 0
        self.captions = captions if live else None  # a cache has the captions' states: freed again
        del captions
        runtime.free_memory()
        settings = (config.vae_dtype, device, config.vae_chunk_frames, on_host)
        self.clips = ClipEncoder(config.vae, vae_config, *settings)

    def maker(self, sampler: LatentSampler, noise_strength: float) -> VideoMaker:
        """What makes videos of the sampler's latents."""
        assert self.clips is not None
        vae, chunk_frames = self.clips.vae, self.clips.chunk_frames
        latent_frames = -(-chunk_frames // vae.config.stride_thw[0])
        return VideoMaker(sampler, vae, Stopwatch(), latent_frames, noise_strength, self.clips.at_work)

    def moments(self, x_BCTHW: np.ndarray) -> np.ndarray:
        """As ClipEncoder, in as many parts as an update has."""
        assert self.clips is not None
        return self.clips(x_BCTHW, self.config.accumulate)

    def text(self, captions: Sequence[str]) -> tuple:
        """As CaptionEncoder, in as many parts as an update has."""
        assert self.captions is not None
        return self.captions(captions, self.config.accumulate)

    def summary(self) -> str:
        """How many captions were longer than the encoder takes, and the first of them."""
        count = len(self.cut) + (self.captions.num_cut if self.captions else 0)
        told = [*self.cut, *(self.captions.cut if self.captions else ())]
        return "\n  ".join([f"captions cut: {count or 'none'}", *told])
