"""The optimizer: torch's AdamW, whatever way parameters are joined; overflow changes nothing."""

import numpy as np
import pytest

from common.optim import LossScale, OptimConfig, controls

SHAPES = {"a.weight": (3, 4), "a.bias": (4,), "b.weight": (2, 3, 2, 2)}
CONFIG = OptimConfig(lr=1e-2, weight_decay=0.1, max_grad_norm=0.5)


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def updated(tree, steps, spoil=None, joined=200, spoil_loss=False):
    """Parameters and averages after updates by drawn gradients, and the norms.

    Args:
        spoil: the step whose gradients, or loss's terms, are not finite.
    """
    params = {name: tree.ops.parameter(shape) for name, shape in SHAPES.items()}
    tree.runtime.overwrite(params, arrays(0))
    before, tree.optim.MAX_PARAMETERS = tree.optim.MAX_PARAMETERS, joined
    update = tree.optim.Update(params, CONFIG, tree.zero.Replicated(tree.parallel.Mean(1)), True)
    tree.optim.MAX_PARAMETERS = before
    norms = []
    for step in range(1, steps + 1):
        grads = [4.0 * g for g in arrays(step).values()]
        terms = np.array([1.5, 0.5], np.float32)
        if step == spoil:
            (terms if spoil_loss else grads[1])[1] = np.inf
        numbers = tree.tensor(controls(CONFIG, step, CONFIG.rate(step), 0.9, loss_scale=4.0))
        grads = tree.runtime.varying(tuple(map(tree.tensor, grads)))
        norm, finite = update(grads, numbers, tree.tensor(terms))
        assert bool(tree.numpy(finite)) == (step != spoil)
        norms.append(float(tree.numpy(norm)))
    averages = np.concatenate([tree.numpy(vector) for vector in update.averages])
    return {name: tree.numpy(param).copy() for name, param in params.items()}, averages, norms


def test_update_is_adamw_with_clipping(tree):
    torch = pytest.importorskip("torch")
    theirs = {name: torch.nn.Parameter(torch.from_numpy(x)) for name, x in arrays(0).items()}
    adamw = torch.optim.AdamW(theirs.values(), lr=CONFIG.lr, weight_decay=CONFIG.weight_decay)
    average, norms = np.concatenate([x.ravel() for x in arrays(0).values()]), []
    for step in (1, 2, 3):
        for param, grad in zip(theirs.values(), arrays(step).values(), strict=True):
            param.grad = torch.from_numpy(grad)
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.values(), CONFIG.max_grad_norm)))
        adamw.step()
        now = np.concatenate([param.detach().numpy().ravel() for param in theirs.values()])
        average = 0.9 * average + 0.1 * now
    ours, our_average, our_norms = updated(tree, 3)
    for name, param in theirs.items():
        np.testing.assert_allclose(ours[name], param.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(our_average, average, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(our_norms, norms, rtol=1e-5)


def test_how_parameters_are_joined_changes_nothing(tree):
    together, average, _ = updated(tree, 2)
    apart, same_average, _ = updated(tree, 2, joined=1)
    for name in SHAPES:
        np.testing.assert_array_equal(together[name], apart[name])
    np.testing.assert_array_equal(average, same_average)


@pytest.mark.parametrize("spoil_loss", [False, True], ids=["gradient", "loss"])
def test_an_overflow_changes_nothing(tree, spoil_loss):
    with_overflow, average, _ = updated(tree, 3, spoil=3, spoil_loss=spoil_loss)
    without, same_average, _ = updated(tree, 2)
    for name in SHAPES:
        np.testing.assert_array_equal(with_overflow[name], without[name])
    np.testing.assert_array_equal(average, same_average)


def test_the_loss_scale_finds_what_fits():
    scale = LossScale("float16", patience=3)
    start = scale.value
    assert scale.overflowed()
    assert scale.value == start / 2
    for _ in range(3):
        scale.fitted()
    assert scale.value == start
    again = LossScale("float16")
    again.restore(scale.state())
    assert (again.value, again.calm) == (scale.value, scale.calm)
    assert not LossScale("bfloat16").overflowed()  # nothing to gain: the caller stops
    while scale.overflowed():
        pass
    assert scale.value < 2.0**-14


def test_the_rate_warms_up_and_decays():
    config = OptimConfig(lr=1.0, warmup_steps=4, decay_steps=12, final_lr_share=0.1)
    rates = [config.rate(step) for step in range(1, 15)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.55)
    assert rates[11:] == pytest.approx([0.1, 0.1, 0.1])


@pytest.mark.ms
def test_what_a_tree_lacks_is_refused_with_the_remedy():
    from tools.parity.tree import Tree

    with pytest.raises(ValueError, match=r"got 3, wanted at most 2: .* use zero=2"):
        Tree("ms").fsdp.owned(None)
