"""Devices, compilation, autograd and memory: what stands around a model and differs between frameworks."""

import contextlib
import functools
import gc
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from common.checkpoint import check_weights, finite, shapes_of
from common.errors import InputError
from common.host import cpu_name, kind_of, number_of, peak_process_memory_mb

from . import kernels

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


TESTED = (2, 13)  # the least release of PyTorch that the tests ran with


def setup(device: str = "auto", local_rank: int = 0) -> str:
    """Choose the device: auto, cpu, or the accelerator of this tree (ascend in ms, cuda in pt), with a number
    where there are several (cuda:1). No default is set in pt: models, samplers and loaders are given it. In
    ms everything that is called as a Cell is compiled to a graph from here on.

    Args:
        local_rank: which accelerator of this host, where the device has no number.

    Returns:
        The device with its number, for models and loaders; "cpu" has none.

    Raises:
        InputError: a device this tree does not know, or that is not there.
    """
    kind = kind_of(device)
    if _release() < TESTED:
        tried = ".".join(map(str, TESTED))
        print(f"warning: torch {torch.__version__} was not tried here, {tried} was", file=sys.stderr)
    if kind not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: got {device!r}; the PyTorch tree runs on auto, cpu, cuda")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind == "cpu" and torch.backends.mps.is_available():
            print("device: auto takes the CPU; Apple's GPU (mps) is not supported", file=sys.stderr)
    if kind == "cpu":
        return device if device.startswith("cpu") else "cpu"
    if not torch.cuda.is_available():
        raise InputError(
            "device: cuda is not available (no driver or a CPU build of PyTorch); use device=cpu"
        )
    index, count = number_of(device, local_rank), torch.cuda.device_count()
    if index >= count:
        raise InputError(f"device: got cuda:{index}, wanted one of {count}: cuda:0 to cuda:{count - 1}")
    _warn_of_conv3d()
    torch.cuda.set_device(index)  # NCCL meets on the current one; nothing else of ours looks at it
    return f"cuda:{index}"


def _release() -> tuple[int, ...]:
    """Major and minor version of PyTorch."""
    return tuple(map(int, torch.__version__.split(".")[:2]))


def _warn_of_conv3d() -> None:
    """Name the releases of PyTorch whose 3D convolutions in bfloat16 leave cuDNN (pytorch/pytorch#166643)."""
    version, cudnn = torch.__version__.split("+")[0], torch.backends.cudnn.version() or 0
    if version in ("2.9.0", "2.9.1") and cudnn < 91500:
        print(
            f"warning: torch {version} with cuDNN {cudnn} takes 3 to 17 times the memory for 3D convolutions "
            "in bfloat16, as the VAE has them: use another torch, or vae_dtype=float32",
            file=sys.stderr,
        )


def check_dtypes(device: str, dtypes: Mapping[str, str]) -> None:
    """Refuse, before anything is loaded, precisions that a device does not compute in, by their keys.

    Raises:
        InputError: with the remedy.
    """
    for key, dtype in dtypes.items():
        if kind_of(device) == "cuda" and dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            raise InputError(
                f"{key}: {torch.cuda.get_device_name(device)} has no bfloat16; set {key}=float16 or float32"
            )


def compile_operators(device: str, online: bool) -> None:
    """Whether an Ascend compiles, at their first use and for every shape, the operators that have no aclnn
    kernel; else it takes CANN's prebuilt ones. Nothing elsewhere.
    """


def device_of(owner: Tensor | nn.Module) -> str:
    """Where a tensor is, or the first parameter of a model."""
    tensor = owner if isinstance(owner, Tensor) else next(owner.parameters())
    return str(tensor.device)


def to_tensor(array: np.ndarray, device: str, dtype: str | None = None) -> Tensor:
    """A NumPy array on a device, floats cast to `dtype` if given."""
    tensor = torch.from_numpy(np.asarray(array, order="C")).to(device)
    return tensor if dtype is None else tensor.to(DTYPES[dtype])


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as NumPy, half precision widened to float32."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.detach().cpu().numpy()


def parameters(model: nn.Module) -> dict:
    """All parameters and frozen constants by name; both trees use the checkpoint's names."""
    return dict(model.named_parameters())


def trainable(model: nn.Module) -> dict:
    """The parameters that are trained, by name."""
    return {name: p for name, p in parameters(model).items() if p.requires_grad}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping, where: str) -> None:
    """Copy NumPy weights into a model.

    Raises:
        InputError: every missing, unexpected and misshapen key, all in one message, before anything is
            copied; or the first weight that is not finite.
    """
    params = parameters(model)
    check_weights({name: tuple(p.shape) for name, p in params.items()}, shapes_of(weights), where)
    for name, param in params.items():
        param.copy_(torch.from_numpy(finite(weights, name, where)))


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """Store the parameters in `dtype`; activations follow."""
    return model.to(DTYPES[dtype])


def place(model: nn.Module, device: str) -> nn.Module:
    """Move a model to the device and switch dropout off."""
    return model.to(device).eval()


def recompute(blocks: Sequence, every: int) -> None:
    """Make every n-th block forget its activations and compute them again for its gradients; 0: none."""
    for block in blocks[::every] if every else ():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


@contextlib.contextmanager
def on_device(model: nn.Module, device: str) -> Iterator[None]:
    """Inside, the model is on the device; afterwards it rests in the host's memory."""
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")


def inference() -> contextlib.AbstractContextManager:
    """A context without gradients."""
    return torch.inference_mode()


def compiled(function: Callable, *models: nn.Module) -> Callable:
    """A function of tensors as one graph; name the models it uses."""
    return function


def varying(tensors: tuple) -> tuple:
    """A tuple for a graph whose tensors change between calls; a plain one's are constants to MindSpore."""
    return tensors


def gradients(function: Callable, params: Sequence) -> Callable:
    """A function of the same arguments that returns (values, gradients): `function` returns a tuple of at
    least two tensors, the first is differentiated.

    May be called inside a compiled step.
    """
    params = list(params)
    if any(isinstance(param, DTensor) for param in params):
        return functools.partial(_sharded_gradients, function, params)

    def values_and_grads(*args):
        values = function(*args)
        grads = torch.autograd.grad(values[0], params, materialize_grads=True)
        return tuple(value.detach() for value in values), grads

    return values_and_grads


def _sharded_gradients(function: Callable, params: Sequence, *args: Tensor) -> tuple:
    """FSDP hands gradients out through `backward` alone: this rank's part of their mean."""
    values = function(*args)
    values[0].backward()
    grads = []
    for param in params:
        grads.append(param.grad.to_local() if param.grad is not None else torch.zeros_like(param.to_local()))
        param.grad = None
    return tuple(value.detach() for value in values), tuple(grads)


def input_gradient(function: Callable, *args: Tensor) -> tuple:
    """(values, gradient by the first argument) of a function as `gradients` wants it; nothing flows further
    back.

    May be called inside a compiled step.
    """
    first = args[0].detach().requires_grad_()
    values = function(first, *args[1:])
    (gradient,) = torch.autograd.grad(values[0], first)
    return tuple(value.detach() for value in values), gradient


def value_and_grad(function: Callable, model: nn.Module) -> Callable:
    """A function of the same arguments that returns (value, gradients by parameter name)."""
    params = trainable(model)

    def value_and_named_grads(*args):
        value = function(*args)
        grads = torch.autograd.grad(value, list(params.values()), materialize_grads=True)
        return value.detach(), dict(zip(params, grads, strict=True))

    return value_and_named_grads


@torch.no_grad()
def overwrite(params: Mapping, values: Mapping) -> None:
    """Give parameters the NumPy values of the same names, also those that compiled graphs already use."""
    for name, param in params.items():
        value = torch.from_numpy(np.asarray(values[name], order="C")).to(param.device)
        if isinstance(param, DTensor):
            value = distribute_tensor(value, param.device_mesh, param.placements, src_data_rank=None)
        param.copy_(value)


def modules(model: nn.Module) -> dict:
    """All modules inside a model by their path."""
    return {name: module for name, module in model.named_modules() if name}


@contextlib.contextmanager
def recording(model: nn.Module, sink: Callable[[str, tuple, object], None]) -> Iterator[None]:
    """Inside, every module of `model` that is called reports sink(name, arguments, result), innermost first.

    MindSpore has hooks in PyNative mode only, so that is how the model runs inside.
    """
    handles = []
    for name, module in model.named_modules():
        if name:
            hook = functools.partial(_report, sink, name)
            handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _report(sink: Callable, name: str, module: nn.Module, arguments: tuple, result: object) -> None:
    sink(name, arguments, result)


def free_memory() -> None:
    """Give the device's memory of models that are no longer referred to back to it."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where CUDA was not used


def peak_memory_mb(device: str) -> float:
    """Largest memory in use so far: the device's, or the process's on a CPU; in MiB."""
    if kind_of(device) == "cpu":
        return peak_process_memory_mb()
    return torch.cuda.max_memory_allocated(device) / 2**20


def device_name(device: str) -> str:
    """What the device calls itself."""
    return cpu_name() if kind_of(device) == "cpu" else torch.cuda.get_device_name(device)


def exact_float32(device: str) -> str:
    """Ask for float32 that is computed as float32, in products and convolutions; returns a sentence on what
    holds on this device.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default is True: convolutions with 11 bits
    if device == "cpu":
        return "float32 is computed as float32"
    return "float32 is computed as float32: TF32 is switched off, for products and for convolutions"


def versions() -> dict:
    """The framework and what it stands on."""
    return {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}


@contextlib.contextmanager
def building(device: str) -> Iterator[None]:
    """Models built inside use the kernels of `device`, and in pt their parameters are made there."""
    with kernels.on(kind_of(device)), torch.device(device):
        yield
