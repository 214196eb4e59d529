"""The networks that judge videos, from the files they are published in: I3D in one, LPIPS in two."""

import json
import os
import pickle

import numpy as np
import pytest

from common.checkpoint import read_safetensors
from common.judges import INCEPTION_MIXED, INCEPTION_STEM, VGG16_CONVS, I3DConfig, LPIPSConfig
from common.noise import normal

from .helpers import raw, run, temporary_files, write_safetensors

BRANCHES = ("Branch_0/Conv3d_0a_1x1", "Branch_1/Conv3d_0a_1x1", "Branch_1/Conv3d_0b_3x3")
BRANCHES += ("Branch_2/Conv3d_0a_1x1", "Branch_2/Conv3d_0b_3x3", "Branch_3/Conv3d_0b_1x1")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def flax_i3d(divisor: int = 8, classes: int = 5) -> dict:
    """I3D as Flax nests it, with random weights."""
    params: dict = {}
    stats: dict = {}
    count = iter(range(1000))

    def unit(size, inputs, outputs):
        kernel = normal((size, size, size, inputs, outputs), 1, next(count))
        bias, mean = normal((outputs,), 2, next(count)), normal((1, 1, 1, 1, outputs), 3, next(count))
        var = np.abs(normal((1, 1, 1, 1, outputs), 4, next(count)))
        return (
            {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": bias}},
            {"BatchNorm_0": {"mean": mean, "var": var}},
        )

    channels = 3
    for name, size, width in zip(
        ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"), (7, 1, 3), INCEPTION_STEM, strict=True
    ):
        params[name], stats[name] = unit(size, channels, width // divisor)
        channels = width // divisor
    for name, full in INCEPTION_MIXED.items():
        w = [width // divisor for width in full]
        inputs = (channels, channels, w[1], channels, w[3], channels)
        params[f"Mixed_{name}"], stats[f"Mixed_{name}"] = {}, {}
        for branch, a, b in zip(BRANCHES, inputs, w, strict=True):
            made = unit(3 if branch.endswith("3x3") else 1, a, b)
            params[f"Mixed_{name}"][branch], stats[f"Mixed_{name}"][branch] = made
        channels = w[0] + w[2] + w[4] + w[5]
    kernel, bias = normal((1, 1, 1, channels, classes), 5, 0), normal((classes,), 5, 1)
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": {"kernel": kernel, "bias": bias}}
    return {"params": params, "batch_stats": stats}


def dump(path, tree, protocol=4):
    path.write_bytes(pickle.dumps(tree, protocol))
    return path


def refused(source, match, **options):
    destination = source.parent / "refused"
    with pytest.raises(ValueError, match=match) as caught:
        run(source, destination, **options)
    assert "\n" not in str(caught.value)
    assert not destination.exists()
    assert not temporary_files(source.parent)


def test_i3d_becomes_a_model_directory(tmp_path):
    source = flax_i3d()
    told = run(dump(tmp_path / "i3d-kinetics-400.ckpt", source), tmp_path / "i3d")
    assert any("58 layers, kernels transposed, batch normalisation folded" in line for line in told)
    assert any(line.split() == ["kind", "i3d"] for line in told)
    assert json.loads((tmp_path / "i3d" / "config.json").read_text())["num_classes"] == 5
    weights = read_safetensors(tmp_path / "i3d" / WEIGHTS)
    assert len(weights) == 2 * 58
    params, stats = source["params"]["Mixed_3b"], source["batch_stats"]["Mixed_3b"]
    kernel = params["Branch_1/Conv3d_0b_3x3"]["Conv_0"]["kernel"]
    norm = stats["Branch_1/Conv3d_0b_3x3"]["BatchNorm_0"]
    bias = params["Branch_1/Conv3d_0b_3x3"]["BatchNorm_0"]["bias"]
    # one window of the convolution, then the batch normalisation, against the folded weights
    x = normal(kernel.shape[:4], 6, 0)
    y = (np.tensordot(x, kernel, 4) - norm["mean"].ravel()) / np.sqrt(norm["var"].ravel() + 1e-3) + bias
    folded = np.einsum("dhwi,oidhw->o", x, weights["mixed_3b.branch_1b.weight"])
    np.testing.assert_allclose(folded + weights["mixed_3b.branch_1b.bias"], y, rtol=1e-4, atol=1e-4)
    logits = source["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]["kernel"][0, 0, 0]
    np.testing.assert_array_equal(weights["logits.weight"], logits.T)


def test_the_networks_take_what_was_converted(tree, tmp_path):
    """Names and shapes are the model's own, in both trees."""
    run(dump(tmp_path / "i3d.ckpt", flax_i3d()), tmp_path / "i3d")
    model = tree.i3d.I3D(I3DConfig(width_divisor=8, num_classes=5))
    tree.load(model, read_safetensors(tmp_path / "i3d" / WEIGHTS), "converted")
    vgg, heads = write_lpips(tmp_path)
    run(vgg, tmp_path / "lpips", also=(heads,))
    model = tree.lpips.LPIPS(LPIPSConfig(widths=(4, 5, 6, 7, 8)))
    tree.load(model, read_safetensors(tmp_path / "lpips" / WEIGHTS), "converted")


def test_numpy_2_and_other_protocols_are_read_alike(tmp_path):
    source = flax_i3d()
    data = pickle.dumps(source, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "old.ckpt").write_bytes(data)
    (tmp_path / "new.ckpt").write_bytes(data.replace(b"numpy.core.multiarray", b"numpy._core.multiarray"))
    run(tmp_path / "old.ckpt", tmp_path / "old")
    run(tmp_path / "new.ckpt", tmp_path / "new")
    run(dump(tmp_path / "two.pkl", _fortran(source), 4), tmp_path / "fortran")
    old, other, fortran = (read_safetensors(tmp_path / n / WEIGHTS) for n in ("old", "new", "fortran"))
    assert all((old[name] == other[name]).all() and (old[name] == fortran[name]).all() for name in old)


def _fortran(tree):
    if isinstance(tree, dict):
        return {key: _fortran(value) for key, value in tree.items()}
    return np.asfortranarray(tree)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Reduced:
    """Calls one of the permitted names with something it was not made for."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".ckpt", ".pkl"])
def test_pickles_that_run_code(tmp_path, suffix):
    touched, path = tmp_path / "touched", tmp_path / f"c{suffix}"
    for what in (Payload(touched), {"params": {"Conv3d_1a_7x7": Payload(touched)}}):
        dump(path, what)
        for kind in ("auto", "any"):
            refused(
                path, rf"c\{suffix}: refused, because loading it would run posix\.system; wanted", kind=kind
            )
    dump(path, {"x": Reduced(np.frombuffer, (b"1234", "u1"))})
    refused(path, r"would run numpy\.frombuffer; wanted nothing but NumPy arrays")
    dump(path, {"x": Reduced(eval, ("1",))})
    refused(path, r"would run builtins\.eval")
    assert not touched.exists()


def test_pickles_of_other_things(tmp_path):
    path = tmp_path / "c.ckpt"
    dump(path, {"x": np.array([{"a": 1}, None])})
    refused(path, r"c\.ckpt: x: element type O8 is not one of float64, .* cast it before it is saved")
    dump(path, {"x": np.zeros(3, "M8[s]")})
    refused(path, r"c\.ckpt: x: element type M8 is not one of float64")
    dump(path, {"x": np.zeros(3, ">f4")})
    refused(path, "another byte order")
    dump(path, {"x": np.zeros(3), "epoch": 7})
    refused(path, r"c\.ckpt: epoch is no array")
    dump(path, {"x": Reduced(np.ndarray, (3,))})
    refused(path, r"not a whole pickle")
    loop: dict = {"x": np.zeros(3)}
    loop["again"] = loop
    dump(path, loop)
    refused(path, r"nested more than 32 deep, or hold themselves; save the state_dict alone")
    dump(path, {"x": Reduced(np.dtype, ("f4",))})
    refused(path, r"x is no array")
    whole = pickle.dumps({"x": np.zeros(1000)}, 4)
    for size in (3, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, r"c\.ckpt: not a whole pickle")
    dump(path, {"x": np.zeros(3)})
    refused(path, "parameters like x are of no kind we know, wanted transformer, vae, text, i3d or lpips")
    assert any("verified  1 tensors" in line for line in run(path, tmp_path / "plain", kind="any"))


def test_half_of_i3d_is_refused(tmp_path):
    path = tmp_path / "i3d.ckpt"
    source = flax_i3d()
    del source["batch_stats"]["Mixed_4c"]["Branch_3/Conv3d_0b_1x1"]["BatchNorm_0"]["var"]
    refused(dump(path, source), r"mixed_4c\.branch_3b has bias, kernel, mean, wanted bias, kernel, mean, var")
    source = flax_i3d()
    source["params"]["Mixed_4c"]["Branch_9/Conv3d_0b_1x1"] = {"Conv_0": {"kernel": np.zeros(1)}}
    refused(dump(path, source), r"Branch_9.* is not part of I3D as we know it")
    source = flax_i3d()
    del source["params"]["Logits/Conv3d_0c_1x1"]
    refused(dump(path, source), "has no logits")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("mean", np.zeros((1, 1, 1, 1, 3)), "has parts of different sizes"),
        ("mean", np.zeros(()), "has parts of different sizes"),
        ("var", np.full((1, 1, 1, 1, 8), -1.0), "has a negative variance"),
    ],
)
def test_i3d_whose_normalisation_does_not_fit_is_refused(tmp_path, part, value, message):
    source = flax_i3d()
    width = source["batch_stats"]["Mixed_4c"]["Branch_3/Conv3d_0b_1x1"]["BatchNorm_0"]["var"].size
    assert width == 8
    source["batch_stats"]["Mixed_4c"]["Branch_3/Conv3d_0b_1x1"]["BatchNorm_0"][part] = value
    refused(dump(tmp_path / "i3d.ckpt", source), rf"i3d\.ckpt: mixed_4c\.branch_3b {message}; copy")


@pytest.mark.pt
def test_i3d_in_a_pytorch_file(tmp_path):
    """Arrays that someone saved with torch become the same model."""
    import torch

    def as_torch(tree):
        if isinstance(tree, dict):
            return {key: as_torch(value) for key, value in tree.items()}
        return torch.from_numpy(np.ascontiguousarray(tree))

    source = flax_i3d()
    torch.save(as_torch(source), tmp_path / "i3d.pt")
    run(tmp_path / "i3d.pt", tmp_path / "a")
    run(dump(tmp_path / "i3d.ckpt", source), tmp_path / "b")
    a, b = (read_safetensors(tmp_path / folder / WEIGHTS) for folder in "ab")
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)


def write_lpips(folder, widths=(4, 5, 6, 7, 8)):
    """torchvision's VGG16 (narrow) and LPIPS's heads, under their published names."""
    features, heads, channels = {"classifier.0.weight": np.zeros((2, 2), np.float32)}, {}, 3
    for n, (convs, width) in enumerate(zip(VGG16_CONVS, widths, strict=True)):
        for i in convs:
            features[f"features.{i}.weight"] = normal((width, channels, 3, 3), 0, i)
            features[f"features.{i}.bias"] = normal((width,), 1, i)
            channels = width
        heads[f"lin{n}.model.1.weight"] = np.abs(normal((1, width, 1, 1), 2, n))
    return (
        write_safetensors(folder / "vgg16.safetensors", raw(features)),
        write_safetensors(folder / "heads.safetensors", raw(heads)),
    )


def test_lpips_is_put_together_from_its_two_files(tmp_path):
    vgg, heads = write_lpips(tmp_path)
    told = run(vgg, tmp_path / "lpips", also=(heads,))
    assert any(line.split() == ["kind", "lpips"] for line in told)
    assert any("left out: 1 tensors that LPIPS does not use" in line for line in told)
    assert len([line for line in told if line.startswith("read ")]) == 2
    weights = read_safetensors(tmp_path / "lpips" / WEIGHTS)
    assert json.loads((tmp_path / "lpips" / "config.json").read_text())["widths"] == [4, 5, 6, 7, 8]
    np.testing.assert_array_equal(weights["net.slice3.12.weight"], normal((6, 6, 3, 3), 0, 12))
    assert weights["scaling_layer.shift"].ravel().tolist() == pytest.approx([-0.03, -0.088, -0.188])
    # the other way round, and again from what was made
    run(heads, tmp_path / "swapped", also=(vgg,))
    run(tmp_path / "lpips", tmp_path / "again")
    for folder in ("swapped", "again"):
        other = read_safetensors(tmp_path / folder / WEIGHTS)
        assert other.keys() == weights.keys()
        assert all((other[name] == weights[name]).all() for name in weights)


def test_half_of_lpips_is_refused(tmp_path):
    vgg, heads = write_lpips(tmp_path)
    refused(
        vgg,
        r"the heads \(lin4\.\.\.\) are missing; add weights/v0\.1/vgg\.pth of the package lpips with --also",
    )
    refused(heads, r"VGG16 \(features\.28\.\.\.\) are missing; add torchvision's vgg16 \.pth")
    weights = read_safetensors(vgg)
    del weights["features.7.weight"]
    cut = write_safetensors(tmp_path / "cut.safetensors", raw(weights))
    refused(cut, r"of LPIPS net\.slice2\.7\.weight is missing or no kernel; copy", also=(heads,))
    refused(vgg, r"--also .*nowhere\.pth: no such file", also=(tmp_path / "nowhere.pth",))


@pytest.mark.pt
def test_lpips_from_pytorch_files(tmp_path):
    """The published files are PyTorch's: a zip archive, and the heads in the format before 1.6."""
    import torch

    vgg, heads = write_lpips(tmp_path)
    for path, zipped in ((vgg, True), (heads, False)):
        state = {name: torch.from_numpy(array) for name, array in read_safetensors(path).items()}
        torch.save(state, path.with_suffix(".pth"), _use_new_zipfile_serialization=zipped)
    run(vgg.with_suffix(".pth"), tmp_path / "a", also=(heads.with_suffix(".pth"),))
    run(vgg, tmp_path / "b", also=(heads,))
    a, b = (read_safetensors(tmp_path / folder / WEIGHTS) for folder in "ab")
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)
