"""Compare training runs by what they cost: validation loss against floating-point operations.

python -m tools.ablation PICTURE.png RUN ...      RUN: the output folder of a training with a validation loss
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.config import build
from common.data.t2v_config import T2VDataConfig
from common.errors import InputError
from common.files import read_json
from common.flops import transformer_flops
from common.images import write_png
from common.models import TransformerConfig
from common.training.curves import comparison
from common.training.log import read_rows

LOSS = "validation/loss"


def main(arguments: Sequence[str]) -> None:
    asked = {"-h", "--help"} & {*arguments}
    if len(arguments) < 2 or asked:
        print((__doc__ or "").strip(), file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    picture, *runs = arguments
    try:
        compare(Path(picture), [Path(run) for run in runs])
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def compare(picture: Path, runs: Sequence[Path]) -> None:
    """A Markdown table, and the curves as a picture.

    Raises:
        InputError: runs of one name, or one that was not trained from a config on clips of one size.
    """
    names = [run.name for run in runs]
    if len({*names}) < len(names):
        raise InputError(f"ablation: got runs named {', '.join(names)}, wanted names that differ")
    print("| run | plan | GFLOP a sample | of it self-attention | loss | after |")
    print("|---|---|---|---|---|---|")
    curves = {}
    for run in runs:
        report = read_json(run / "train.json")
        described = report["config"]["transformer"]["config"]
        if described is None:
            raise InputError(f"{run}: began from transformer.path, wanted a run with transformer.config")
        model = build(TransformerConfig, described, str(run))
        data = build(T2VDataConfig, report["config"]["data"], str(run))
        if len(data.buckets) != 1:
            raise InputError(
                f"{run}: got {len(data.buckets)} sizes, wanted drawn clips of one (generated_sizes)"
            )
        bucket = data.buckets[0]
        tokens = bucket.num_tokens * 4 // model.patch_size**2  # a bucket counts patches of 2 x 2 cells
        flops = transformer_flops(model, tokens, report["config"]["text"]["max_length"])
        steps, loss = validation_losses(run)
        per_step = flops.training * report["config"]["global_batch_size"]
        curves[run.name] = (steps * per_step / 1e12, loss)
        dense = sum(arrangement == "full" for arrangement in model.plan)
        plan = f"{dense} dense, {len(model.plan) - dense} sparse (k={model.skip_stride})"
        share = flops.self_attention / flops.forward
        print(
            f"| {run.name} | {plan} | {flops.training / 1e9:.2f} | {share:.0%} | {loss[-1]:.4f} | "
            f"{int(steps[-1])} steps, {curves[run.name][0][-1]:.1f} TFLOP |"
        )
    write_png(picture, comparison("validation loss against TFLOP", curves))
    print(f"\n{picture}")


def validation_losses(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses where the run was validated."""
    rows = [row for row in read_rows(run / "losses.jsonl") if LOSS in row]
    if not rows:
        raise InputError(f"{run}: no {LOSS} in losses.jsonl; wanted a run with validation.data")
    steps, losses = (np.array([row[key] for row in rows], float) for key in ("step", LOSS))
    return steps, losses


if __name__ == "__main__":
    main(sys.argv[1:])
