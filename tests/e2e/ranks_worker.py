"""One process of a distributed test: several short trainings one after the other, with the ranks met once.

python tests/e2e/ranks_worker.py TREE CONFIG OUTPUT CASE ...     (under torchrun or msrun)

A case is `name:key=value,key=value`; the key `config` stands for another CONFIG. Rank 0 writes losses and
weights of each to OUTPUT/name.safetensors.
The case `traffic:` counts instead what the exchanges of a forward pass of the released model's plan send.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.conditions import grid_inputs
from common.config import load
from common.files import write_safetensors
from common.models import TransformerConfig
from common.noise import normal
from common.parallel import mesh_from_environment
from common.rope import timestep_features
from common.t2v_training import T2VTrainConfig, open_loader
from tools.parity.tree import Tree

PLAN = TransformerConfig(
    num_attention_heads=2, attention_head_dim=48, cross_attention_dim=96, caption_channels=8
)
LATENT_THW = (2, 8, 8)  # 32 tokens


def main(name: str, config_path: str, output: str, *cases: str) -> None:
    mesh = mesh_from_environment()
    tree = Tree(name)
    ranks = tree.parallel.Ranks(mesh, tree.device)
    for case in cases:
        label, _, overrides = case.partition(":")
        chosen = [o for o in overrides.split(",") if o]
        paths = [o.removeprefix("config=") for o in chosen if o.startswith("config=")]
        chosen = [o for o in chosen if not o.startswith("config=")]
        config = load(T2VTrainConfig, (paths or [config_path])[0], chosen)
        found = sent(tree, ranks) if label == "traffic" else train(tree, config, mesh, ranks)
        if mesh.rank == 0:
            write_safetensors(Path(output) / f"{label}.safetensors", found, {})


def train(tree: Tree, config: T2VTrainConfig, mesh, ranks) -> dict[str, np.ndarray]:
    """Losses, gradient norms and the final parameters of `loop.steps` updates."""
    task = tree.train.T2VTraining(config, tree.device, mesh, ranks)
    samples_mesh = config.samples_mesh(mesh)
    per_rank = config.global_batch_size // samples_mesh.size
    loader = open_loader(config, config.data, per_rank, config.seed, samples_mesh)
    logged = [task.step(step, batch) for step, batch in loader.batches(0, config.loop.steps)]
    state = task.trained.state()
    rows = {key: np.array([row[key] for row in logged]) for key in ("loss", "grad_norm")}
    return {**rows, **{f"state.{name}": np.asarray(x, np.float64) for name, x in state.items()}}


def sent(tree: Tree, ranks) -> dict[str, np.ndarray]:
    """Elements this rank sends in a forward pass by kind: pt counts calls, ms the operators for Ascend."""
    found = {}
    for kind in ("skiparse", "ulysses"):
        group = ranks.everyone()
        with tree.kernels.on("ascend" if tree.name == "ms" else "cpu"):
            model = tree.transformer.Transformer(PLAN, tree.sequence.Sequence(PLAN.skip_stride, kind, group))
        tree.loading.initialize(model, 0)
        model = tree.runtime.place(tree.runtime.cast(model, "float16"), tree.device)
        grid = grid_inputs(PLAN, LATENT_THW, 1)
        x = normal((1, PLAN.in_channels, *LATENT_THW), 0, 0).astype(np.float16)
        text = normal((1, 16, PLAN.caption_channels), 0, 1).astype(np.float16)
        arrays = [x, timestep_features(np.array([500.0])), text, grid.cos_S13P, grid.sin_S13P]
        count = operators_for_ascend if tree.name == "ms" else calls
        found[kind] = np.array([count(tree, model, *map(tree.tensor, arrays))])
    return found


def calls(tree: Tree, model, x, features, text, cos, sin) -> int:
    """What is handed to the collective while the model runs."""
    from torch import distributed

    total, original = 0, distributed.all_to_all_single

    def counted(output, given, **options):
        nonlocal total
        total += given.numel() - given[0].numel()
        return original(output, given, **options)

    distributed.all_to_all_single = counted
    with tree.runtime.inference():
        model(x, features, tree.transformer.TextProjection(model)(text), None, cos, sin, None, None)
    distributed.all_to_all_single = original
    return total


def operators_for_ascend(tree: Tree, model, x, features, text, cos, sin) -> int:
    """The AlltoAll operators of the graph that an Ascend would be handed."""
    from mindspore import nn

    from tools.ascend_graph import export

    class Forward(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.model, self.text = model, tree.transformer.TextProjection(model)

        def construct(self, x, features, text, cos, sin):
            return self.model(x, features, self.text(text), None, cos, sin, None, None)

    graph = export(Forward(), x, features, text, cos, sin)
    shapes = [graph.type_of(node.inputs[0]).shape for node in graph.find("AlltoAll")]
    return int(sum(np.prod(shape) * (shape[0] - 1) // shape[0] for shape in shapes))


if __name__ == "__main__":
    main(*sys.argv[1:])
