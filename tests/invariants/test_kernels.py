"""The kernels table: every entry computes what the entry "reference" computes; what is missing is said."""

import numpy as np
import pytest

from common.noise import normal


def test_a_device_without_an_entry_lists_the_entries(tree):
    with pytest.raises(ValueError, match=r"no attention kernel for device 'tpu'; have .*cpu, reference"):
        tree.kernels.kernel("attention", "tpu")
    with tree.kernels.on("tpu"), pytest.raises(ValueError, match=r"no conv2d kernel for device 'tpu'"):
        tree.layers.Conv2d(3, 4, 3)


@pytest.mark.parametrize("layout", ["SBH", "BSH"])
@pytest.mark.parametrize("mask", ["none", "keys", "heads"])
def test_attention_equals_its_reference(tree, layout, mask):
    S, L, B, N, E = 9, 7, 2, 3, 12
    q, k, v = normal((S, B, E), 0, 0), normal((L, B, E), 0, 1), normal((L, B, E), 0, 2)
    if layout == "BSH":
        q, k, v = (np.ascontiguousarray(x.transpose(1, 0, 2)) for x in (q, k, v))
    shape = {"none": None, "keys": (B, 1, 1, L), "heads": (B, N, 1, L)}[mask]
    keep = (
        None if shape is None else np.arange(L) < 1 + np.arange(np.prod(shape[:2])).reshape(*shape[:2], 1, 1)
    )
    ours, reference = (
        tree.call(tree.kernels.kernel("attention", device), q, k, v, keep, N, layout)
        for device in ("cpu", "reference")
    )
    assert ours.shape == q.shape
    np.testing.assert_allclose(ours, reference, atol=2e-6)


def test_norms_keep_their_statistics_in_float32(tree):
    """Values of 3000 overflow float16 when squared; the norm must not."""
    x = np.float32(3000) * normal((4, 32), 0, 0)
    norm = tree.kernels.kernel("layer_norm")
    full = tree.call(norm, x, None, None, 1e-6)
    with tree.runtime.inference():
        half = tree.runtime.compiled(norm)(tree.runtime.to_tensor(x, "cpu", "float16"), None, None, 1e-6)
    np.testing.assert_allclose(tree.numpy(half), full, atol=5e-3)


@pytest.mark.ms
def test_prebuilt_kernels_are_asked_for_on_ascend_only(monkeypatch):
    from ms import runtime

    asked = []
    monkeypatch.setattr(runtime.op_tuning, "op_compile", asked.append)
    for device, online in [("cpu", True), ("cpu", False), ("ascend", True), ("ascend", False)]:
        runtime.compile_operators(device, online)
    assert asked == [False]


@pytest.mark.ms
def test_the_first_ascend_is_refused():
    from ms import runtime

    with pytest.raises(ValueError, match=r"first-generation Ascend 910.*Atlas A2 \(910B\) or newer"):
        runtime._refuse_first_ascend("ascend910")
    runtime._refuse_first_ascend("ascend910b")
    runtime._refuse_first_ascend("ascend910_93")
