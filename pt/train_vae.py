"""Training the video VAE: python -m pt.train_vae CONFIG [key=value ...]"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from common import cli
from common.checkpoint import save_weights
from common.data.clips import ClipLoader
from common.evaluation import grid_row
from common.images import to_uint8
from common.metrics import psnr_ssim_T
from common.models import VAEConfig
from common.noise import index_of, normal
from common.parallel import Mesh, meeting, mesh_from_environment
from common.training.loop import Batch, Validation, run_loop
from common.vae_training import VAETrainConfig

from . import runtime
from .discriminator import Discriminator
from .loading import load_lpips, load_vae, start_discriminator
from .parallel import Ranks
from .posterior import split_moments
from .training import Trained, below, cut
from .vae import check_clip
from .vae_losses import DiscriminatorLoss, DiscriminatorPhase, GeneratorLoss

USAGE = """
python -m pt.train_vae CONFIG [key=value ...]
    python -m pt.train_vae configs/train_vae_stage1.yaml data.sources.0.videos=VIDEOS output=outputs/my_vae
"""
PICTURED = 4  # clips shown of a validation


class VAETraining:
    """A VAE in training, with its discriminator: the task of `common.training.loop`."""

    def __init__(self, config: VAETrainConfig, device: str, ranks: Ranks):
        self.config, self.ranks = config, ranks
        self.vae_config: VAEConfig = config.vae.resolve(VAEConfig, "vae")
        for data in [config.data, *([config.validation.data] if config.validation else [])]:
            check_clip(self.vae_config, (1, 3, data.num_frames, data.height, data.width))
        self.held_out: ClipLoader | None = None
        if config.validation is not None:  # opened now, so that a wrong path shows before the first step
            size = min(config.validation.batch_size, config.validation.clips)
            self.held_out = ClipLoader(config.validation.data, size, config.seed + 1)
        self.vae = load_vae(config.vae, self.vae_config, "float32", device, fresh=True)
        self.judged = load_vae(config.vae, self.vae_config, "float32", device, fresh=True)
        discriminator = None
        if config.discriminator is not None:
            discriminator = start_discriminator(config.discriminator, config.seed, ranks.mean, device)
        lpips = None if config.lpips is None else load_lpips(config.lpips, device)
        loss = GeneratorLoss(config.loss, self.vae, discriminator, lpips, ranks.mean, config.dtype)
        runtime.overwrite({"logvar": loss.logvar}, {"logvar": np.float32(config.loss.logvar_init)})
        runtime.place(loss, device)
        params = runtime.trainable(self.vae)
        if config.loss.learn_logvar:
            params["logvar"] = loss.logvar
        settings = {"ranks": ranks, "dtype": config.dtype, "accumulate": config.accumulate}
        self.generator = Trained(loss, params, config.optimizer, ema_decay=config.ema_decay, **settings)
        self.discriminator: Discriminator | None = discriminator
        if discriminator is not None:
            phase = DiscriminatorPhase(loss, DiscriminatorLoss(config.loss, discriminator))
            of_discriminator = runtime.trainable(discriminator)
            self.discrimination = Trained(phase, of_discriminator, config.disc_optimizer, **settings)

    def step(self, step: int, batch: Batch) -> Mapping[str, float]:
        """One update of the VAE, or of the discriminator when it is its turn."""
        x_BCTHW = batch["x_BCTHW"]
        disc_factor = np.float32(self.config.loss.disc_factor * (step >= self.config.loss.disc_start))
        trained = self.discrimination if self.config.trains_discriminator(step) else self.generator
        return trained.step(
            cut(self.config.accumulate, x_BCTHW, self.posterior_noise(step, x_BCTHW.shape), disc_factor)
        )

    def posterior_noise(self, step: int, shape: tuple) -> np.ndarray:
        """A draw for each clip, by its number among those of all ranks in this step."""
        B, _, T, H, W = shape
        stride_t, stride_h, stride_w = self.vae_config.stride_thw
        one = (1, self.vae_config.latent_dim, (T - 1) // stride_t + 1, H // stride_h, W // stride_w)
        first = self.ranks.rank * B
        draws = [normal(one, self.config.seed, index_of(f"posterior {step} {first + i}")) for i in range(B)]
        return np.concatenate(draws)

    def validate(self, step: int) -> Validation:
        """PSNR and SSIM of the validation clips through the posterior's mean, by the averaged weights."""
        assert self.config.validation is not None
        runtime.overwrite(runtime.parameters(self.judged), self._averaged_weights())
        psnr, ssim, rows = [], [], []
        for x_BCTHW in self._validation_clips():
            with runtime.inference():
                moments = self.judged.encode(runtime.to_tensor(x_BCTHW, runtime.device_of(self.judged)))
                restored = runtime.to_numpy(self.judged.decode(split_moments(moments)[0]))
            for original_THWC, restored_THWC in zip(
                map(to_uint8, x_BCTHW), map(to_uint8, restored), strict=True
            ):
                psnr_T, ssim_T = psnr_ssim_T(original_THWC, restored_THWC)
                psnr.append(float(psnr_T.mean()))
                ssim.append(float(ssim_T.mean()))
                if len(rows) < PICTURED:
                    rows.append(grid_row(original_THWC, restored_THWC, 4.0))
        scores = {"psnr_db": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}
        return Validation(-scores["psnr_db"], scores, {"reconstruction": np.concatenate(rows)})

    def _validation_clips(self) -> Iterator[np.ndarray]:
        validation, loader = self.config.validation, self.held_out
        assert validation is not None
        assert loader is not None
        for _, batch in loader.batches(0, -(-validation.clips // loader.batch_size)):
            yield batch["x_BCTHW"]

    def state(self) -> Mapping[str, np.ndarray]:
        """All ranks hold the same, so each writes its share."""
        state = {f"generator.{name}": x for name, x in self.generator.state().items()}
        if self.discriminator is not None:
            state |= {f"discriminator.{name}": x for name, x in self.discrimination.state().items()}
            state |= {f"norms.{name}": runtime.to_numpy(x) for name, x in self._norms().items()}
        return {name: state[name] for name in sorted(state)[self.ranks.rank :: self.ranks.size]}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what the ranks gave together."""
        self.generator.restore(below(state, "generator."))
        if self.discriminator is not None:
            self.discrimination.restore(below(state, "discriminator."))
            runtime.overwrite(self._norms(), below(state, "norms."))

    def _norms(self) -> dict:
        """The running statistics, which no gradient trains."""
        assert self.discriminator is not None
        everything, trained = runtime.parameters(self.discriminator), runtime.trainable(self.discriminator)
        return {name: p for name, p in everything.items() if name not in trained}

    def export(self, folder: Path) -> None:
        """The averaged weights as a model directory."""
        if self.ranks.rank == 0:
            config = {"_class_name": "WFVAEModel", **self.vae_config.model_dump()}
            save_weights(folder, self._averaged_weights(), config)

    def _averaged_weights(self) -> dict[str, np.ndarray]:
        current = {name: runtime.to_numpy(p) for name, p in runtime.parameters(self.vae).items()}
        averages = self.generator.averages()
        return {name: averages.get(name, x) for name, x in current.items()}


def train(config: VAETrainConfig) -> None:
    """Train until `loop.steps`, or until told to stop; resume where the output folder's run was left."""
    mesh = mesh_from_environment()
    device = runtime.setup(config.device, mesh.local_rank)
    runtime.check_dtypes(device, {"dtype": config.dtype})
    runtime.compile_operators(device, config.op_compile)
    cli.prepare_folder(config.output)
    with meeting(Ranks(mesh, device)) as ranks:
        train_on(config, mesh, device, ranks)


def train_on(config: VAETrainConfig, mesh: Mesh, device: str, ranks: Ranks) -> None:
    """The work of one rank."""
    loader = ClipLoader(config.data, config.per_rank(mesh), config.seed, mesh)
    task = VAETraining(config, device, ranks)
    if ranks.rank == 0:
        trained = sum(int(np.prod(p.shape)) for p in task.generator.params.values())
        print(
            f"data: {loader.summary()}\nmodel: {trained / 1e6:.2f} M parameters, {device}, {mesh.size} ranks"
        )
    try:
        outcome = run_loop(task, loader.batches, config.loop, config.output, config, ranks, config.free_keys)
    finally:  # a session that is stopped has skipped files too, and each rank its own
        if loader.broken:
            print(f"rank {ranks.rank}: {loader.summary()}")
    if ranks.rank == 0 and outcome.checkpoint is not None:
        print(f"{outcome.checkpoint}  after {outcome.step} steps, {outcome.seconds:.0f} s")


if __name__ == "__main__":
    cli.main(VAETrainConfig, train, USAGE)
