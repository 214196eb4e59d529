"""Training the text-to-video transformer: python -m ms.train CONFIG [key=value ...]"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from common import cli
from common.ascend import check_attention
from common.checkpoint import save_weights
from common.condition_layers import begins_conditions
from common.data.encoded import EncodedLoader
from common.data.t2v import T2VLoader
from common.diffusion import draw_timesteps
from common.fingerprint import clips_of
from common.i2v_training import Draw, check_conditions, show
from common.images import contact_sheet, to_uint8
from common.masks import MaskConfig, latent_mask
from common.model_record import Objective, write_objective, write_record
from common.models import TransformerConfig, VAEConfig
from common.parallel import Mesh, meeting, mesh_from_environment
from common.provenance import record_of
from common.runs import check_pair
from common.t2v_training import (
    Samples,
    T2VTrainConfig,
    announce,
    noise_for,
    open_loader,
    sample_condition,
    sample_latents,
    step_inputs,
    validation_given,
)
from common.text import check_encoder
from common.training.checkpoint import checkpoints
from common.training.loop import Batch, Validation, run_loop
from common.windows import Window

from . import runtime
from .diffusion_loss import DiffusionLoss
from .encoders import Encoders
from .fsdp import shard_parameters, together
from .loading import load_transformer
from .parallel import Ranks
from .pipeline import LatentSampler
from .training import Trained, to_device
from .zero import sharding

USAGE = """
python -m ms.train CONFIG [key=value ...]
    python -m ms.train configs/train_tiny_1.yaml data.encoded=null output=outputs/my_model
"""
SHOWN = 8  # frames of a validation's video in its picture
CLIPS = "data.sha256"  # in a checkpoint: which clips it was trained on


class T2VTraining:
    """A transformer in training: the task of `common.training.loop`."""

    def __init__(
        self,
        config: T2VTrainConfig,
        device: str,
        mesh: Mesh,
        ranks: Ranks,
        sizes: Sequence[tuple[int, int, int]] = (),
    ):
        """What costs little is checked first: weights take minutes to load.

        Args:
            sizes: frames, height and width of the clips, for the record beside the weights.
        """
        self.config, self.ranks, self.sizes = config, ranks, sizes
        self.mesh = config.samples_mesh(mesh)
        self.vae_config: VAEConfig = config.vae.resolve(VAEConfig, "vae")
        self.model_config: TransformerConfig = config.transformer.resolve(TransformerConfig, "transformer")
        check_pair(self.vae_config, self.model_config)
        check_encoder(config.text, self.model_config.caption_channels)
        for source in (config.transformer, config.vae):
            source.check_files()
        check_conditions(config.conditions, self.model_config)
        self.given = validation_given(config, self.vae_config, self.model_config)
        sharding(ranks, config.parallel.zero)  # refused, if it is, before anything is loaded
        self.clips = clips_of(config.data)
        self.held_out = self.open_held_out()
        self.encoders = Encoders(config, self.vae_config, self.model_config, device)
        self.transformer = load_transformer(
            config.transformer,
            self.model_config,
            "float32",
            device,
            fresh=True,
            kind=config.parallel.kind,
            group=ranks.neighbours(config.parallel.sequence),
        )
        runtime.recompute(list(self.transformer.transformer_blocks), config.recompute)
        self.loss = DiffusionLoss(self.transformer, config.dtype)
        self.whole = nullcontext
        if config.parallel.zero == 3 and ranks.size > 1:
            shard_parameters(self.loss, self.transformer.units(), ranks)
            self.whole = partial(together, self.loss)
        self.trained = Trained(
            self.loss,
            runtime.trainable(self.transformer),
            config.optimizer,
            ranks,
            config.dtype,
            config.ema_decay,
            config.accumulate,
            ema_warmup=True,
            zero=config.parallel.zero,
            ema_on_host=config.ema_on_host,
        )

    def step(self, step: int, batch: Batch) -> Mapping[str, float]:
        """One update."""
        places = self.mesh.share(range(self.config.global_batch_size))
        masks = self.config.conditions and self.config.conditions.stage(step)
        samples = self.samples(batch, Draw(self.config.seed, step, places), masks)
        timesteps = draw_timesteps(
            self.config.diffusion, self.config.seed, step, self.config.global_batch_size
        )
        cells = self._kept_cells(samples, self.config.accumulate)
        parts = []
        for part in np.split(np.arange(len(places)), self.config.accumulate):
            mine = [places[i] for i in part]
            parts.append(
                self.inputs(self.config.seed, step, mine, samples.take(part), timesteps[mine], cells)
            )
        return self.trained.step(parts)

    def samples(self, batch: Batch, draw: Draw, masks: MaskConfig | None) -> Samples:
        """Latents' moments and text of a batch, computed now or before.

        Args:
            masks: the tasks of an image-to-video model.
        """
        if "moments_BZTHW" in batch:
            encoded = Samples(batch["moments_BZTHW"], None, batch["text_BLE"], batch["keep_BL"])
            return encoded if self.config.conditions is None else self.with_shown(encoded, batch)
        x_BCTHW, keep_BTHW, conditions = batch["x_BCTHW"], batch["keep_BTHW"], self.config.conditions
        samples = Samples(self.encoders.moments(x_BCTHW), keep_BTHW, *self.encoders.text(batch["captions"]))
        if conditions is None or masks is None:
            return samples
        shown = show(conditions, masks, x_BCTHW, keep_BTHW, self.vae_config.stride_thw, draw)
        shown_BZTHW = self.encoders.moments(shown.x_BCTHW)
        return samples._replace(shown_BZTHW=shown_BZTHW, mask_BMTHW=shown.mask_BMTHW)

    def with_shown(self, encoded: Samples, batch: Batch) -> Samples:
        """Samples of a cache with what it holds for an image-to-video model."""
        H, W = encoded.moments_BZTHW.shape[3:]
        mask = latent_mask(batch["given_BT"], (H, W), self.vae_config.stride_thw)
        return encoded._replace(shown_BZTHW=batch["shown_BZTHW"], mask_BMTHW=mask)

    def inputs(
        self,
        seed: int,
        step: int,
        places: Sequence[int],
        samples: Samples,
        timesteps_B: np.ndarray,
        kept_cells: float | None = None,
    ) -> tuple:
        """The arguments of the loss for samples at these places of the batch of all ranks."""
        diffusion = self.config.diffusion
        latent = sample_latents(samples.moments_BZTHW, self.vae_config, seed, step, places)
        noise = noise_for(diffusion, latent.shape[1:], seed, step, places)
        condition = sample_condition(samples, self.vae_config, seed, step, places)
        given = (latent, samples, timesteps_B, noise, condition, kept_cells)
        return step_inputs(diffusion, self.model_config, *given, dtype=self.config.dtype)

    def _kept_cells(self, samples: Samples, parts: int) -> float | None:
        """Cells with video in a part, on average over parts and ranks: all of them make one mean."""
        if samples.keep_BTHW is None:  # on no rank
            return None
        return self.ranks.average(float(samples.keep_BTHW.sum())) / parts

    def validate(self, step: int) -> Validation:
        """The loss on clips kept apart, and videos of the prompts, by the averaged weights."""
        validation = self.config.validation
        assert validation is not None
        scalars, pictures, videos = {}, {}, {}
        averages = self.averages()
        with self.averaged(averages), self.whole():
            if self.held_out is not None:
                scalars["loss"] = self.ranks.average(self._validation_loss(self.held_out))
            if validation.prompts and self.mesh.rank == 0:  # and all that share its sequence
                drawn = self.draw()
                pictures["samples"] = np.concatenate([contact_sheet(video, SHOWN, SHOWN) for video in drawn])
                if validation.num_frames > 1:
                    videos = {f"sample {i + 1}": video for i, video in enumerate(drawn)}
        return Validation(scalars.get("loss"), scalars, pictures, videos, self.config.data.fps)

    def open_held_out(self) -> T2VLoader | EncodedLoader | None:
        """The validation's clips; opened before the first step, so that a wrong path shows then."""
        validation = self.config.validation
        if validation is None or validation.data is None:
            return None
        share = self.mesh.share(range(self.held_out_batch))
        return open_loader(self.config, validation.data, len(share), self.config.seed + 1, self.mesh)

    @property
    def held_out_batch(self) -> int:
        """Clips of all ranks whose validation loss is computed at once: what fits into memory."""
        return self.config.global_batch_size // self.config.accumulate

    def _validation_loss(self, held_out: T2VLoader | EncodedLoader) -> float:
        assert self.config.validation is not None
        losses, seed = [], self.config.seed + 1
        places = self.mesh.share(range(self.held_out_batch))
        for step, batch in held_out.batches(0, self.config.validation.batches):
            timesteps = draw_timesteps(self.config.diffusion, seed, step, self.held_out_batch)[places]
            masks = self.config.conditions and self.config.conditions.stages[-1]  # the same at any time
            samples = self.samples(batch, Draw(seed, step, places), masks)
            inputs = self.inputs(seed, step, places, samples, timesteps, self._kept_cells(samples, 1))
            with runtime.inference():
                terms = self.loss(*to_device((*inputs, np.ones((), np.float32)), self.trained.device))[1]
            losses.append(float(runtime.to_numpy(terms)[0]))
        return float(np.mean(losses))

    @cached_property
    def sampler(self) -> LatentSampler:
        """What draws a validation's latents; compiled once."""
        assert self.config.validation is not None
        sampler = self.config.validation.sampler
        return LatentSampler(self.transformer, sampler.table(), sampler.guidance(), self.config.dtype)

    def draw(self) -> list:
        """A video (T,H,W,3) of every prompt."""
        validation = self.config.validation
        assert validation is not None
        assert self.encoders.prompts is not None
        states, keep = self.encoders.prompts
        make = self.encoders.maker(self.sampler, validation.noise_strength)
        windows, videos = [Window(0, validation.num_frames, 0)], []
        for i, given in enumerate(self.given):
            rows = [0, i + 1] if self.sampler.guided else [i + 1]
            made = make((states[rows], None if keep is None else keep[rows]), windows, [given], [i])
            assert made.pixels_BCTHW is not None
            videos.append(to_uint8(made.pixels_BCTHW[0]))
        return videos

    @contextmanager
    def averaged(self, averages: Mapping[str, np.ndarray]) -> Iterator[None]:
        """Inside, the transformer has its averaged weights."""
        params = self.trained.params
        current = {name: runtime.to_numpy(param).copy() for name, param in params.items()}
        runtime.overwrite(params, averages)
        try:
            yield
        finally:
            runtime.overwrite(params, current)

    def averages(self) -> dict[str, np.ndarray]:
        """The averaged weights; the weights where no average is kept. All ranks ask together."""
        if self.config.ema_decay:
            return self.trained.averages()
        return {name: runtime.to_numpy(param) for name, param in self.trained.params.items()}

    def state(self) -> Mapping[str, np.ndarray]:
        """All ranks hold the same, so each writes its share."""
        state = self.trained.state() | {CLIPS: np.frombuffer(bytes.fromhex(self.clips), np.uint8)}
        return {name: state[name] for name in sorted(state)[self.ranks.rank :: self.ranks.size]}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what the ranks gave together; other clips than before are told of."""
        self.trained.restore(state)
        if self.ranks.rank == 0 and CLIPS in state and state[CLIPS].tobytes().hex() != self.clips:
            print(
                "warning: the clips are not those of the run that is resumed: annotations or the cache "
                "changed; it goes on in the order of what is there now",
                file=sys.stderr,
            )

    def export(self, folder: Path) -> None:
        """The averaged weights as a model directory."""
        averages = self.averages()
        if self.ranks.rank == 0:
            save_weights(folder, averages, self.model_config.hub_dict())
            diffusion = self.config.diffusion
            write_objective(folder, Objective(diffusion.prediction_type, diffusion.schedule))
            write_record(folder, record_of(self.config, self.sizes))


def train(config: T2VTrainConfig) -> None:
    """Train until `loop.steps`, or until told to stop; resume where the output folder's run was left."""
    mesh = mesh_from_environment()
    config.samples_mesh(mesh)
    device = runtime.setup(config.device, mesh.local_rank)
    runtime.check_dtypes(device, config.dtypes)
    runtime.compile_operators(device, config.op_compile)
    # ranks meet before the annotations are read: msrun's scheduler goes no further
    with meeting(Ranks(mesh, device)) as ranks:
        cli.prepare_folder(config.output)
        train_on(config, mesh, device, ranks)


def train_on(config: T2VTrainConfig, mesh: Mesh, device: str, ranks: Ranks) -> None:
    """The work of one rank."""
    samples_mesh = config.samples_mesh(mesh)
    per_rank = config.global_batch_size // samples_mesh.size
    loader = open_loader(config, config.data, per_rank, config.seed, samples_mesh)
    report = loader.report()
    model_config = config.transformer.resolve(TransformerConfig, "transformer")
    check_attention(device, model_config, per_rank // config.accumulate)
    announced = announce(config, model_config, report.tokens, per_rank // config.accumulate)
    if mesh.rank == 0:
        print(f"{report}\n{announced}")
    task = T2VTraining(config, device, mesh, ranks, report.sizes)
    if ranks.rank == 0:
        trained = sum(int(np.prod(p.shape)) for p in task.trained.params.values())
        print(f"model: {trained / 1e6:.2f} M parameters, {device}, {mesh.size} ranks")
        if begins_conditions(config.transformer, task.model_config) and not checkpoints(config.output):
            print(
                f"transformer: {config.transformer.path} is a text-to-video model; the layers that let "
                "images in are new and start at zero"
            )
    try:
        outcome = run_loop(task, loader.batches, config.loop, config.output, config, ranks, config.free_keys)
    finally:  # a session that is stopped has skipped clips too, and each rank its own
        print(f"rank {ranks.rank}: {loader.summary()}; {task.encoders.summary()}")
        if task.held_out is not None:
            print(f"rank {ranks.rank}, validation: {task.held_out.summary()}")
    if ranks.rank == 0 and outcome.checkpoint is not None:
        print(f"{outcome.checkpoint}  after {outcome.step} steps, {outcome.seconds:.0f} s")


if __name__ == "__main__":
    cli.main(T2VTrainConfig, train, USAGE)
