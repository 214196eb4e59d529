"""Which VAE, text encoder and clips a transformer was trained with: written at its training, looked at before
it samples.
"""

from collections.abc import Sequence

from .fingerprint import encoder_hash, model_hash
from .model_record import ModelRecord, TextRecord, read_record
from .runs import ModelSource
from .t2v_training import T2VTrainConfig
from .text import TextConfig

SAMPLING = {"name", "num_steps", "guidance_scale", "guidance_rescale"}  # of a sampler, beside the objective
STRANGER = (
    "{0}: its files are not those that the transformer {1} was trained with; a copy in another precision is "
    "as good, another model gives noise"
)


def record_of(config: T2VTrainConfig, sizes: Sequence[tuple[int, int, int]]) -> ModelRecord:
    """What is kept beside the weights of a training run.

    Args:
        sizes: frames, height and width of the clips.
    """
    sampler = config.validation.sampler.model_dump(include=SAMPLING) if config.validation else {}
    text = TextRecord(
        kind=config.text.kind, max_length=config.text.max_length, sha256=encoder_hash(config.text)
    )
    return ModelRecord(
        sampler=sampler,
        text=text,
        vae_sha256=model_hash(config.vae),
        sizes=tuple(sizes),
        fps=config.data.fps,
    )


def strangers(transformer: ModelSource, vae: ModelSource, text: TextConfig) -> list[str]:
    """A sentence for each of VAE and text encoder that is not the one a transformer was trained with."""
    if transformer.path is None:
        return []
    record, found = read_record(transformer.path), []
    if record.vae_sha256 not in (None, model_hash(vae)):
        found.append(STRANGER.format("vae", transformer.path))
    if record.text is None:
        return found
    if record.text.sha256 not in (None, encoder_hash(text)):
        found.append(STRANGER.format("text", transformer.path))
    if record.text.max_length != text.max_length:
        found.append(
            f"text.max_length: got {text.max_length}, the transformer was trained with "
            f"{record.text.max_length}"
        )
    return found
