"""Models, samplers and loaders are given their device: nothing looks at a default, which belongs to a thread.

No GPU is here. The device "cpu:0" takes the branches that a numbered one takes; "meta" has shapes and no
values, and a tensor that is made elsewhere does not go with those on it.
"""

import ast
import subprocess
import sys
import threading

import numpy as np
import pytest

from common.errors import InputError
from common.models import TransformerConfig, VAEConfig
from common.runs import SamplerConfig
from tests.e2e.command_lines import needs_encoder
from tests.tiny import tiny_transformer_config
from tools.mirror import ROOT

torch = pytest.importorskip("torch", reason="these are promises of the PyTorch tree")
pytestmark = pytest.mark.pt
if torch is not None:
    from torch.utils._python_dispatch import TorchDispatchMode

    from pt import kernels, ops, pipeline, runtime, transformer, vae

RELEASED = TransformerConfig()
RELEASED_VAE = VAEConfig(norm_type="layernorm", t_interpolation="trilinear", base_channels=128)


ONE_STEP = ("sampler.num_steps=1", "num_frames=1", "height=32", "width=32")


class OnlyOn(TorchDispatchMode):
    """Inside, every operator gives tensors of one device."""

    def __init__(self, device: str):
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.lift_fresh.default:  # a NumPy array, on its way to the device
            return result
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == self.device, f"{function} made a tensor on {tensor.device}"
                self.count += 1
        return result


def on_meta(build, config):
    """A model without values, with the kernels of a CPU."""
    with kernels.on("cpu"), torch.device("meta"):
        return build(config).to("meta")


def denoise(model, latent_shape, text_length, monkeypatch):
    """Two steps of a sampler of the released setting."""
    monkeypatch.setattr(pipeline.LatentSampler, "check_finite", lambda *_: None)  # meta has no values
    settings = SamplerConfig(num_steps=2)
    sampler = pipeline.LatentSampler(model, settings.table(), settings.guidance(), dtype="bfloat16")
    G, width = 2 * latent_shape[0], model.config.caption_channels
    keep = np.arange(text_length)[None] < np.full((G, 1), text_length - 3)
    noise = pipeline.seeded_noise(latent_shape, [0] * latent_shape[0])
    return sampler(np.zeros((G, text_length, width), np.float32), keep, latent_shape, noise)


def test_the_released_models_make_no_tensor_on_a_device_that_nobody_named(monkeypatch):
    model = runtime.cast(on_meta(transformer.Transformer, RELEASED), "bfloat16")
    decoder = runtime.cast(on_meta(vae.WFVAE, RELEASED_VAE), "bfloat16")
    with OnlyOn("meta") as watched, torch.inference_mode():
        latents = denoise(model, (1, 8, 24, 80, 80), 64, monkeypatch)
        assert latents.shape == (1, 8, 24, 80, 80)
        pixels = decoder.decode(ops.cast_like(latents, decoder.decoder.conv_out.weight), 2)
        assert pixels.shape == (1, 3, 93, 640, 640)
        assert decoder.encode(pixels, 8).shape == (1, 16, 24, 80, 80)
    assert watched.count > 10_000
    with pytest.raises(AssertionError, match="made a tensor on cpu"), OnlyOn("meta"):
        torch.zeros(1)


def test_a_worker_thread_samples_on_the_device_of_its_model(monkeypatch):
    """A server's threads: a default device set in the main thread would not hold in them."""
    model, made = on_meta(transformer.Transformer, tiny_transformer_config()), []
    worker = threading.Thread(target=lambda: made.append(denoise(model, (1, 4, 2, 4, 4), 5, monkeypatch)))
    worker.start()
    worker.join()
    assert [x.device.type for x in made] == ["meta"]


def test_parameters_are_made_on_the_device_that_is_built_for():
    with runtime.building("meta"):
        assert torch.zeros(1).device.type == "meta"
    assert torch.get_default_device().type == "cpu"
    assert runtime.setup("cpu:0") == "cpu:0"
    assert torch.get_default_device().index is None, "no default was set"


@needs_encoder
@pytest.mark.parametrize("command", ["sample", "train"])
def test_commands_run_on_a_numbered_device(command, tmp_path):
    """transformers asks for the package accelerate where a default device is set: CUDA never started so."""
    config, *keys = {
        "sample": ["configs/sample_demo.yaml", *ONE_STEP],
        "train": [
            "configs/train_tiny_1.yaml",
            "data.encoded=null",
            "data.generated_sizes=[[1,32,32]]",
            "loop={steps: 2, validate_every: 2, checkpoint_every: 2}",
            "global_batch_size=2",
            "validation={prompts: [a red ball], num_frames: 1, height: 32, width: 32, sampler: "
            "{name: FlowMatchEuler, prediction_type: flow, num_steps: 1}}",
        ],
    }[command]
    keys += ["device=cpu:0", f"output={tmp_path / 'out'}"]
    line = [sys.executable, "-m", f"pt.{command}", config, *keys]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "out").iterdir())


def test_sampling_runs_without_the_modules_that_windows_lacks(tmp_path):
    hidden = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('resource', 'fcntl', 'pwd', 'grp', 'termios')))\n"
        "sys.argv = ['pt.sample', *sys.argv[1:]]\n"
        "import runpy; runpy.run_module('pt.sample', run_name='__main__', alter_sys=True)\n"
    )
    keys = [*ONE_STEP, f"output={tmp_path}"]
    line = [sys.executable, "-c", hidden, "configs/sample_demo.yaml", "device=cpu", *keys]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.png"))
    line = [sys.executable, "-c", hidden.split("sys.argv")[0] + "import pt.train, pt.train_vae, pt.encode"]
    assert subprocess.run(line, cwd=ROOT, capture_output=True, text=True).stderr == ""


def test_no_module_of_either_tree_sets_or_reads_a_default_device():
    for path in [*(ROOT / "pt").glob("*.py"), *(ROOT / "ms").glob("*.py")]:
        names = {
            node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        }
        assert not names & {"set_default_device", "get_default_device", "set_default_dtype"}, path


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "cuda is not available"), ("ascend", "the PyTorch tree runs on auto, cpu, cuda")],
)
def test_devices_that_are_not_there(device, message):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=message):
        runtime.setup(device)


def test_a_gpu_that_is_not_there_is_named_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert runtime.setup("cuda", local_rank=1) == "cuda:1"
    assert runtime.setup("cuda:0", local_rank=1) == "cuda:0"
    assert taken == [1, 0]
    with pytest.raises(InputError, match=r"got cuda:2, wanted one of 2: cuda:0 to cuda:1"):
        runtime.setup("cuda:2")


@pytest.mark.parametrize(
    ("version", "cudnn", "told"),
    [
        ("2.9.1+cu128", 91002, "torch 2.9.1 with cuDNN 91002 takes 3 to 17 times the memory"),
        ("2.9.0", 91500, ""),
        ("2.13.0+cu130", 91002, ""),
    ],
)
def test_releases_that_lose_cudnn_are_warned_of_by_name(monkeypatch, capsys, version, cudnn, told):
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    runtime._warn_of_conv3d()
    assert told in capsys.readouterr().err


def test_an_older_torch_than_the_tests_ran_with_is_warned_of(monkeypatch, capsys):
    runtime.setup("cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch, "__version__", "2.8.1+cu126")
    runtime.setup("cpu")
    assert capsys.readouterr().err == "warning: torch 2.8.1+cu126 was not tried here, 2.13 was\n"


def test_apples_gpu_is_not_taken_silently_for_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert runtime.setup("auto") == "cpu"
    assert "auto takes the CPU; Apple's GPU (mps) is not supported" in capsys.readouterr().err
