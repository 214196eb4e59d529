"""Devices, compilation, autograd and memory: what stands around a model and differs between frameworks."""

import contextlib
import functools
import gc
import glob
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import mindspore
import numpy as np
from mindspore import ParameterTuple, Tensor, nn
from mindspore import dtype as mstype
from mindspore._c_expression import MSContext  # no public way to ask for the chip
from mindspore.device_context.ascend import op_tuning

from common.checkpoint import check_weights, finite, shapes_of
from common.errors import InputError
from common.host import cpu_name, kind_of, number_of, peak_process_memory_mb

from . import kernels

DTYPES = {"float32": mstype.float32, "float16": mstype.float16, "bfloat16": mstype.bfloat16}


NPUS = "/dev/davinci[0-9]*"


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
    if kind not in ("auto", "cpu", "ascend"):
        raise InputError(f"device: got {device!r}; the MindSpore tree runs on auto, cpu, ascend")
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    if kind == "auto":
        kind = "ascend" if mindspore.get_context("device_target") == "Ascend" else "cpu"
        if kind == "cpu" and glob.glob(NPUS):
            print(
                "warning: device=auto takes the CPU, though there is an NPU: CANN's environment is not set; "
                "`source .../ascend-toolkit/set_env.sh` and set device=ascend",
                file=sys.stderr,
            )
    index = number_of(device, local_rank)
    try:
        if kind == "ascend":
            mindspore.set_device("Ascend", index)
        elif mindspore.get_context("device_target") != "CPU":  # refused once an operator has run
            mindspore.set_device("CPU")
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"device: {device} is not available ({reason}); use device=cpu") from None
    if kind == "cpu":
        return "cpu"
    _refuse_first_ascend(MSContext.get_instance().get_ascend_soc_version())
    return f"ascend:{index}"


def _refuse_first_ascend(soc_version: str) -> None:
    if soc_version.lower() == "ascend910":
        raise InputError(
            "device: this is a first-generation Ascend 910, which has no FlashAttentionScore; "
            "an Atlas A2 (910B) or newer is needed"
        )


def check_dtypes(device: str, dtypes: Mapping[str, str]) -> None:
    """Refuse, before anything is loaded, precisions that a device does not compute in, by their keys.

    Raises:
        InputError: with the remedy.
    """
    for key, dtype in dtypes.items():
        if kind_of(device) == "cpu" and dtype == "bfloat16":
            raise InputError(
                f"{key}: bfloat16 has no MindSpore kernels on CPU, wanted float32 or float16; "
                f"set {key}=float32"
            )
        if kind_of(device) == "ascend" and key == "dtype" and dtype == "float32":
            raise InputError(
                "dtype: FlashAttentionScore takes float16 or bfloat16, got float32; set dtype=bfloat16"
            )


def compile_operators(device: str, online: bool) -> None:
    """Whether an Ascend compiles, at their first use and for every shape, the operators that have no aclnn
    kernel; else it takes CANN's prebuilt ones. Nothing elsewhere.
    """
    if not online and device.startswith("ascend"):
        op_tuning.op_compile(False)


def device_of(owner: Tensor | nn.Cell) -> str:
    """Where a tensor is, or the first parameter of a model."""
    target = mindspore.get_context("device_target").lower()  # of the process
    return "cpu" if target == "cpu" else f"{target}:{mindspore.get_context('device_id')}"


def to_tensor(array: np.ndarray, device: str, dtype: str | None = None) -> Tensor:
    """A NumPy array on a device, floats cast to `dtype` if given."""
    tensor = Tensor(np.asarray(array, order="C"))
    return tensor if dtype is None else tensor.astype(DTYPES[dtype])


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as NumPy, half precision widened to float32."""
    if tensor.dtype in (mstype.float16, mstype.bfloat16):
        tensor = tensor.astype(mstype.float32)
    return tensor.asnumpy()


def parameters(model: nn.Cell) -> dict:
    """All parameters and frozen constants by name; both trees use the checkpoint's names."""
    return dict(model.parameters_and_names())


def trainable(model: nn.Cell) -> dict:
    """The parameters that are trained, by name."""
    return {name: p for name, p in parameters(model).items() if p.requires_grad}


def load_weights(model: nn.Cell, weights: Mapping, where: str) -> None:
    """Copy NumPy weights into a model.

    Raises:
        InputError: every missing, unexpected and misshapen key, all in one message, before anything is
            copied; or the first weight that is not finite.
    """
    params = parameters(model)
    check_weights({name: tuple(p.shape) for name, p in params.items()}, shapes_of(weights), where)
    for name, param in params.items():
        param.set_data(Tensor(finite(weights, name, where)).astype(param.dtype))


def cast(model: nn.Cell, dtype: str) -> nn.Cell:
    """Store the parameters in `dtype`; activations follow."""
    for param in parameters(model).values():
        param.set_dtype(DTYPES[dtype])
    return model


def place(model: nn.Cell, device: str) -> nn.Cell:
    """Move a model to the device and switch dropout off."""
    model.set_train(False)
    return model


def recompute(blocks: Sequence, every: int) -> None:
    """Make every n-th block forget its activations and compute them again for its gradients; 0: none."""
    for block in blocks[::every] if every else ():
        block.recompute()


@contextlib.contextmanager
def on_device(model: nn.Cell, device: str) -> Iterator[None]:
    """Inside, the model is on the device; afterwards it rests in the host's memory."""
    move = kind_of(device) == "ascend"  # a CPU is the host
    if move:
        for param in parameters(model).values():
            param._load()
    try:
        yield
    finally:
        if move:
            for param in parameters(model).values():
                param._offload()


def inference() -> contextlib.AbstractContextManager:
    """A context without gradients."""
    return contextlib.nullcontext()


class _Function(nn.Cell):
    def __init__(self, function: Callable, models: tuple):
        super().__init__(auto_prefix=False)
        self.function = function
        self.models = nn.CellList(list(models), auto_prefix=False)  # so that the graph knows their parameters

    def construct(self, *args):
        return self.function(*args)


def compiled(function: Callable, *models: nn.Cell) -> Callable:
    """A function of tensors as one graph; name the models it uses."""
    return _Function(function, models)


def varying(tensors: tuple) -> tuple:
    """A tuple for a graph whose tensors change between calls; a plain one's are constants to MindSpore."""
    return mindspore.mutable(tensors) if tensors else tensors  # an empty one ran into wrong buffers


def gradients(function: Callable, params: Sequence) -> Callable:
    """A function of the same arguments that returns (values, gradients): `function` returns a tuple of at
    least two tensors, the first is differentiated.

    May be called inside a compiled step.
    """
    return mindspore.value_and_grad(function, None, ParameterTuple(list(params)), has_aux=True)


def input_gradient(function: Callable, *args: Tensor) -> tuple:
    """(values, gradient by the first argument) of a function as `gradients` wants it; nothing flows further
    back.

    May be called inside a compiled step.
    """
    first, *others = args
    values, gradient = mindspore.value_and_grad(function, 0, None, has_aux=True)(
        mindspore.ops.stop_gradient(first), *others
    )
    return values, mindspore.ops.stop_gradient(gradient)


def value_and_grad(function: Callable, model: nn.Cell) -> Callable:
    """A function of the same arguments that returns (value, gradients by parameter name)."""
    params = trainable(model)
    run = mindspore.value_and_grad(function, None, list(params.values()))

    def value_and_named_grads(*args):
        value, grads = run(*args)
        return value, dict(zip(params, grads, strict=True))

    return value_and_named_grads


def overwrite(params: Mapping, values: Mapping) -> None:
    """Give parameters the NumPy values of the same names, also those that compiled graphs already use."""
    for name, param in params.items():
        mindspore.ops.assign(param, Tensor(np.asarray(values[name], order="C")).astype(param.dtype))
    # eager kernels run beside a graph that is called next, which has been seen to hang it
    mindspore.runtime.synchronize()


def modules(model: nn.Cell) -> dict:
    """All modules inside a model by their path."""
    return {name: module for name, module in model.cells_and_names() if name}


@contextlib.contextmanager
def recording(model: nn.Cell, sink: Callable[[str, tuple, object], None]) -> Iterator[None]:
    """Inside, every module of `model` that is called reports sink(name, arguments, result), innermost first.

    MindSpore has hooks in PyNative mode only, so that is how the model runs inside.
    """
    handles = []
    for name, cell in model.cells_and_names():
        if name:
            hook = functools.partial(_report, sink, name)
            handles.append(cell.register_forward_hook(hook))
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    try:
        yield
    finally:
        mindspore.set_context(mode=mindspore.GRAPH_MODE)
        for handle in handles:
            handle.remove()


def _report(sink: Callable, name: str, cell: nn.Cell, arguments: tuple, result: object) -> None:
    sink(name, arguments, result)


def free_memory() -> None:
    """Give the device's memory of models that are no longer referred to back to it."""
    gc.collect()
    if mindspore.get_context("device_target") != "CPU":
        mindspore.runtime.empty_cache()


def peak_memory_mb(device: str) -> float:
    """Largest memory in use so far: the device's, or the process's on a CPU; in MiB."""
    if kind_of(device) == "cpu":
        return peak_process_memory_mb()
    return mindspore.runtime.max_memory_allocated() / 2**20


def device_name(device: str) -> str:
    """What the device calls itself."""
    if kind_of(device) == "cpu":
        return cpu_name()
    return mindspore.hal.get_device_name(mindspore.get_context("device_id"))


def exact_float32(device: str) -> str:
    """Ask for float32 that is computed as float32, in products and convolutions; returns a sentence on what
    holds on this device.
    """
    if device == "cpu":
        return "float32 is computed as float32"
    # conv_allow_hf32(False) is not called blindly: CANN's own page says its convolution cannot keep float32
    return (
        "float32 is computed as float32 but for convolutions: CANN's default for those is HF32 (11 bits). "
        "That stays, since whether op_precision.conv_allow_hf32(False) ends it was never tried on a device: "
        "expect outputs of convolutions to miss float32's tolerances"
    )


def versions() -> dict:
    """The framework and what it stands on."""
    return {"mindspore": mindspore.__version__, "numpy": np.__version__, "python": platform.python_version()}


@contextlib.contextmanager
def building(device: str) -> Iterator[None]:
    """Models built inside use the kernels of `device`, and in pt their parameters are made there."""
    with kernels.on(kind_of(device)):
        yield
