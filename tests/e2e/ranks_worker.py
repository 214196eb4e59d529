"""One process of a distributed test: several short trainings one after the other, with the ranks met once.

python tests/e2e/ranks_worker.py TREE CONFIG OUTPUT CASE ...     (under torchrun or msrun)

A case is `name:key=value,key=value`. Rank 0 writes losses and weights of each to OUTPUT/name.safetensors.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.config import load
from common.files import write_safetensors
from common.parallel import mesh_from_environment
from common.t2v_training import T2VTrainConfig
from tools.parity.tree import Tree


def main(name: str, config_path: str, output: str, *cases: str) -> None:
    mesh = mesh_from_environment()
    tree = Tree(name)
    ranks = tree.parallel.Ranks(mesh, tree.device)
    for case in cases:
        label, _, overrides = case.partition(":")
        config = load(T2VTrainConfig, config_path, [o for o in overrides.split(",") if o])
        found = train(tree, config, mesh, ranks)
        if mesh.rank == 0:
            write_safetensors(Path(output) / f"{label}.safetensors", found, {})


def train(tree: Tree, config: T2VTrainConfig, mesh, ranks) -> dict[str, np.ndarray]:
    """Losses, gradient norms and the final parameters of `loop.steps` updates."""
    task = tree.train.T2VTraining(config, tree.device, mesh, ranks)
    samples_mesh = config.samples_mesh(mesh)
    per_rank = config.global_batch_size // samples_mesh.size
    loader = task.encoders.loader(config.data, per_rank, config.seed, samples_mesh)
    logged = [task.step(step, batch) for step, batch in loader.batches(0, config.loop.steps)]
    state = task.trained.state()
    rows = {key: np.array([row[key] for row in logged]) for key in ("loss", "grad_norm")}
    return {**rows, **{f"state.{name}": np.asarray(x, np.float64) for name, x in state.items()}}


if __name__ == "__main__":
    main(*sys.argv[1:])
