"""How well a VAE restores videos: PSNR, SSIM, LPIPS and FVD of a folder, a file or a list:
python -m pt.evaluate_vae CONFIG input=videos [key=value ...]
"""

import sys
from typing import Any

import numpy as np

from common import cli, evaluation
from common.data.video_files import find_videos
from common.errors import InputError
from common.evaluation import Clip, Score
from common.fvd import i3d_input
from common.images import to_model, to_uint8, write_png
from common.metrics import psnr_ssim_T
from common.outputs import check_free, digest, free_stem
from common.runs import EvaluateVAEConfig, resolve_vae

from . import runtime
from .i3d import I3D
from .loading import load_i3d, load_lpips, load_vae
from .lpips import LPIPS
from .reconstruct import round_trip
from .vae import check_clip

USAGE = """
python -m pt.evaluate_vae CONFIG [key=value ...]
    python -m pt.evaluate_vae configs/evaluate_demo.yaml input=videos lpips=models/lpips i3d=models/i3d
"""

LPIPS_FRAMES = 8  # looked at together; more only costs memory


def evaluate_vae(config: EvaluateVAEConfig) -> None:
    """Print a table, and write evaluation.json and evaluation.png (original, reconstruction, error)."""
    device = runtime.setup(config.device)
    runtime.check_dtypes(device, {"vae_dtype": config.vae_dtype})
    runtime.compile_operators(device, config.op_compile)
    vae_config = resolve_vae(config.vae)
    config.check_vae(vae_config)
    check_clip(vae_config, (config.batch_size, 3, config.num_frames, config.height, config.width))
    paths = find_videos(config.input)
    folder = cli.prepare_folder(config.output)
    check_free(folder, "evaluation", config, config.overwrite)
    watch = cli.Stopwatch()
    with watch.stage("load"):
        judges = Judges(
            load_lpips(config.lpips, device) if config.lpips else None,
            load_i3d(config.i3d, device) if config.i3d else None,
        )
        vae = load_vae(config.vae, vae_config, config.vae_dtype, device)

    skipped: dict[str, str] = {}
    scores: list[Score] = []
    rows: list[np.ndarray] = []
    print(evaluation.header())
    clips = evaluation.read_clips(paths, config, skipped)
    for group in evaluation.groups_of(clips, config.batch_size):
        with watch.stage("vae"):
            restored = restore(vae, group, config, len(scores))
        with watch.stage("metrics"):
            for clip, restored_THWC in zip(group, restored, strict=True):
                scores.append(judges.score(clip, restored_THWC))
                print(scores[-1].row(), flush=True)
                if len(rows) < evaluation.GRID_ROWS:
                    rows.append(evaluation.grid_row(clip.frames_THWC, restored_THWC, config.error_gain))
    if not scores:
        reasons = "; ".join(skipped.values())
        raise InputError(f"input {config.input}: none of {len(paths)} files could be read: {reasons}")

    facts = evaluation.summary(scores, judges.features())
    picture_HWC = np.concatenate(rows)
    content = digest(
        picture_HWC, np.array([(score.psnr_db, score.ssim, score.lpips or np.nan) for score in scores])
    )
    stem = free_stem(folder, "evaluation", content, config.overwrite)
    write_png(folder / f"{stem}.png", picture_HWC)
    cli.write_report(
        folder / f"{stem}.json",
        config,
        sha256=content,
        **facts,
        clips=evaluation.as_records(scores),
        num_files=len(paths),
        skipped=skipped,
        picture={"file": f"{stem}.png", "columns": ["original", "reconstruction", "error"]}
        | {"error_gain": config.error_gain},
        device=runtime.device_name(device),
        versions=runtime.versions(),
        seconds=watch.seconds,
        peak_memory_mb=round(runtime.peak_memory_mb(device), 1),
    )
    print("\n".join(evaluation.footer(facts, skipped, len(paths))))
    print(folder / f"{stem}.json", file=sys.stderr)


def restore(vae: Any, clips: list[Clip], config: EvaluateVAEConfig, index: int) -> list[np.ndarray]:
    """The clips through the VAE and back, as 8-bit frames; `index` numbers the first of them."""
    x_BCTHW = np.concatenate([to_model(clip.frames_THWC) for clip in clips])

    def run(group_BCTHW: np.ndarray) -> np.ndarray:
        return round_trip(vae, group_BCTHW, config, index)

    return [to_uint8(y_CTHW) for y_CTHW in evaluation.in_groups(run, config.batch_size, x_BCTHW)]


class Judges:
    """The networks that compare a clip with its reconstruction, and what I3D has seen so far."""

    def __init__(self, lpips: LPIPS | None, i3d: I3D | None):
        self.lpips = lpips
        self.i3d = i3d
        self.originals: list[np.ndarray] = []
        self.restored: list[np.ndarray] = []

    def score(self, clip: Clip, restored_THWC: np.ndarray) -> Score:
        """All measures of a clip; features for FVD are kept."""
        psnr_T, ssim_T = psnr_ssim_T(clip.frames_THWC, restored_THWC)
        if self.i3d is not None:
            self.originals.append(call(self.i3d, i3d_input(clip.frames_THWC)))
            self.restored.append(call(self.i3d, i3d_input(restored_THWC)))
        distance = None if self.lpips is None else self.distance(clip.frames_THWC, restored_THWC)
        return Score(clip.name, clip.start, float(psnr_T.mean()), float(ssim_T.mean()), distance)

    def distance(self, a_THWC: np.ndarray, b_THWC: np.ndarray) -> float:
        """LPIPS, the mean over frames."""
        a_TCHW, b_TCHW = (to_model(x_THWC)[0].transpose(1, 0, 2, 3) for x_THWC in (a_THWC, b_THWC))

        def run(*frames: np.ndarray) -> np.ndarray:
            return call(self.lpips, *frames)

        return float(evaluation.in_groups(run, min(LPIPS_FRAMES, len(a_TCHW)), a_TCHW, b_TCHW).mean())

    def features(self) -> list[np.ndarray]:
        """I3D's logits (N,400) of the originals and of the reconstructions; empty without I3D."""
        return [np.concatenate(x) for x in (self.originals, self.restored)] if self.i3d is not None else []


def call(model: I3D | LPIPS | None, *arrays: np.ndarray) -> np.ndarray:
    """A network on NumPy arrays."""
    assert model is not None
    with runtime.inference():
        device = runtime.device_of(model)
        return runtime.to_numpy(model(*[runtime.to_tensor(array, device, "float32") for array in arrays]))


if __name__ == "__main__":
    cli.main(EvaluateVAEConfig, evaluate_vae, USAGE)
