"""How to compute each kind of golden case with one of our trees.

Both trees have the same names, so one function serves both; it is found by the `component` of the case's
record. A function returns our outputs by the golden's names. Outputs that record a defect of the reference
are marked with what ours must equal instead.
"""

from collections.abc import Callable
from typing import Any

from tools.parity.goldens import Case, UnsupportedError
from tools.parity.tree import Tree

from .conditions import run_mask_pieces
from .data_batches import run_collate, run_group_sampler
from .data_items import run_items
from .data_selection import run_functions, run_index, run_transforms
from .sampling import run_sampling, run_schedulers
from .text import run_captions, run_metrics, run_text_encoder
from .training import run_ema, run_training
from .transformer import run_block, run_masks, run_pieces, run_rope, run_skiparse, run_transformer
from .vae import (
    run_causal_vae,
    run_causal_vae_tiles,
    run_posterior,
    run_vae,
    run_vae_blocks,
    run_vae_chunks,
    run_wavelets,
)
from .vae_losses import run_vae_loss

Runner = Callable[[Tree, Case], dict[str, Any]]


def run_case(tree: Tree, case: Case) -> dict[str, Any]:
    """Our outputs of a case by name.

    Raises:
        UnsupportedError: this version has no such component, or not as the case wants it.
    """
    return runner_of(case.record)(tree, case)


def runner_of(record: dict[str, Any]) -> Runner:
    """What computes a case.

    Raises:
        UnsupportedError: nothing does.
    """
    component = record["component"]
    if component not in RUNNERS:
        raise UnsupportedError(f"this version has no component {component!r}")
    return RUNNERS[component]


RUNNERS: dict[str, Runner] = {
    "wfvae": run_vae,
    "wfvae-tiling": run_vae_chunks,
    "causalvae": run_causal_vae,
    "causalvae-tiling": run_causal_vae_tiles,
    "vae-posterior": run_posterior,
    "vae-training-loss": run_vae_loss,
    "training-step": run_training,
    "ema": run_ema,
    "wavelet": run_wavelets,
    "vae-blocks": run_vae_blocks,
    "dit-t2v": run_transformer,
    "dit-inpaint": run_transformer,
    "dit-skiparse": lambda tree, case: (run_masks if "attention_bias" in case.inputs else run_skiparse)(
        tree, case
    ),
    "dit-rope": run_rope,
    "dit-pieces": run_pieces,
    "dit-block": run_block,
    "sampling-t2v": run_sampling,
    "sampling-inpaint": run_sampling,
    "masks": run_mask_pieces,
    "schedulers": run_schedulers,
    "data-captions": run_captions,
    "data-functions": run_functions,
    "data-index": run_index,
    "data-transforms": run_transforms,
    "data-items": run_items,
    "data-collate": run_collate,
    "data-sampler": run_group_sampler,
    "metrics": run_metrics,
    "text-encoder": run_text_encoder,
}
