"""The graph MindSpore would hand to an Ascend, exported on a CPU host and read back: operators, types, paths.

`mindspore.export` compiles and infers without choosing kernels, so no Ascend is needed. Build layers inside
`ms.kernels.on("ascend")`.
"""

import importlib
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import InputError

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}
BOOKKEEPING = {  # they move no data on a device
    *("Load", "UpdateState", "Depend", "MakeTuple", "make_list", "TupleGetItem"),
}


class TensorType(NamedTuple):
    """What the compiler inferred for one output."""

    shape: tuple[int, ...]
    dtype: str


class Node(NamedTuple):
    """One operator of the graph. `inputs` are names of nodes, constants, parameters and graph inputs.

    MindSpore's own scopes are not kept: equal operators of different blocks carry the scope of the first.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    types: tuple[TensorType, ...]
    attributes: dict[str, Any]


class Walk(NamedTuple):
    """What a walk passed, and the operators it stopped at."""

    passed: Counter
    stopped: Counter


@dataclass(frozen=True)
class Graph:
    """An exported graph; nodes are in the order of execution, and every name is in one of the four tables.

    `parameters` holds bfloat16 widened to float32, `parameter_types` says what it was.
    """

    nodes: dict[str, Node]
    constants: dict[str, Any]
    parameters: dict[str, np.ndarray]
    inputs: dict[str, TensorType]
    output: str
    parameter_types: dict[str, TensorType]

    def count(self, skip: Iterable[str] = BOOKKEEPING) -> Counter:
        """How many of each operator."""
        return Counter(node.operator for node in self.nodes.values() if node.operator not in set(skip))

    def find(self, operator: str) -> list[Node]:
        """All nodes of an operator, in the order of execution."""
        return [node for node in self.nodes.values() if node.operator == operator]

    def type_of(self, name: str) -> TensorType | None:
        """Shape and dtype of a value with one output; None for what is no tensor."""
        if name in self.nodes:
            types = self.nodes[name].types
            return types[0] if types else None
        if name in self.inputs:
            return self.inputs[name]
        if name in self.parameters:
            return self.parameter_types[name]
        value = self.constants.get(name)
        return TensorType(value.shape, str(value.dtype)) if isinstance(value, np.ndarray) else None

    def dtypes(self, node: Node) -> set[str]:
        """Of the tensors that a node takes and gives; constants are not asked."""
        taken = [self.type_of(name) for name in node.inputs if name not in self.constants]
        return {kind.dtype for kind in (*taken, *node.types) if kind is not None}

    def upstream(self, name: str, stop: Iterable[str]) -> Walk:
        """Operators on every path from a value back to the graph's inputs or to operators in `stop`."""
        return self._walk([name], stop, lambda node: node.inputs)

    def downstream(self, name: str, stop: Iterable[str]) -> Walk:
        """Operators on every path from a node forward to the graph's output or to operators in `stop`."""
        return self._walk(self._users.get(name, ()), stop, lambda node: self._users.get(node.name, ()))

    def with_node(self, name: str, **changes: Any) -> "Graph":
        """The same graph with one node changed; how a test plants a fault."""
        return replace(self, nodes={**self.nodes, name: self.nodes[name]._replace(**changes)})

    def with_constant(self, name: str, index: int, value: Any) -> "Graph":
        """The same graph with one input of one node replaced by a constant."""
        inputs = list(self.nodes[name].inputs)
        inputs[index] = f"{name}.{index}"
        changed = self.with_node(name, inputs=tuple(inputs))
        return replace(changed, constants={**self.constants, inputs[index]: value})

    def _walk(self, names: Iterable[str], stop: Iterable[str], following: Any) -> Walk:
        todo, seen, path, stop = list(names), set(), Walk(Counter(), Counter()), set(stop)
        while todo:
            name = todo.pop()
            if name in seen or name not in self.nodes:
                continue
            seen.add(name)
            node = self.nodes[name]
            if node.operator in stop:
                path.stopped[node.operator] += 1
            else:
                path.passed[node.operator] += 1
                todo.extend(following(node))
        return path

    @cached_property
    def _users(self) -> dict[str, list[str]]:
        users: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for name in node.inputs:
                users.setdefault(name, []).append(node.name)
        return users


def export(cell: Any, *inputs: Any) -> Graph:
    """Compile a Cell for tensors like `inputs` and read its graph back from a MINDIR file.

    Raises:
        InputError: the graph calls other graphs, or its weights were stored apart (2 GB and more).
    """
    mindspore = importlib.import_module("mindspore")
    protocol = importlib.import_module("mindspore.train.mind_ir_pb2")
    with tempfile.TemporaryDirectory() as folder:
        mindspore.export(cell, *inputs, file_name=f"{folder}/graph", file_format="MINDIR")
        files = sorted(path.name for path in Path(folder).iterdir())
        if files != ["graph.mindir"]:
            raise InputError(
                f"export of {type(cell).__name__}: got {files}, wanted one graph.mindir; "
                "export fewer or narrower layers, the graph repeats anyway"
            )
        model = protocol.ModelProto.FromString((Path(folder) / "graph.mindir").read_bytes())
    if model.functions:
        raise InputError(
            f"export of {type(cell).__name__}: got {len(model.functions)} called graphs, wanted one flat "
            "graph; remove control flow that depends on data, and lazy_inline"
        )
    return _read(model, protocol.AttributeProto)


def _read(model: Any, kinds: Any) -> Graph:
    primitives = {primitive.name: primitive for primitive in model.primitives}
    nodes, constants = {}, {}
    for proto in model.graph.node:
        (name,) = proto.output
        if proto.op_type == "Constant":
            constants[name] = _value(proto.attribute[0], kinds)
            continue
        primitive = primitives.get(proto.op_type.removeprefix("REF::"))
        attributes = {} if primitive is None else {a.name: _value(a, kinds) for a in primitive.attribute}
        types = next((_types(a, kinds) for a in proto.attribute if a.name == "shape"), ())
        operator = proto.op_type if primitive is None else primitive.op_type
        nodes[name] = Node(name, operator, tuple(proto.input), types, attributes)
    parameters = {p.name: _array(p) for p in model.graph.parameter}
    inputs = {i.name: _type(i.tensor[0]) for i in model.graph.input}
    types = {p.name: _type(p) for p in model.graph.parameter}
    return Graph(nodes, constants, parameters, inputs, model.graph.output[0].name, types)


def _value(attribute: Any, kinds: Any) -> Any:
    """A constant: a number, a string, a tensor, a tuple of such, or None for what holds nothing.

    Numbers inside tuples stand in the repeated fields, others in the singular ones.
    """
    kind = attribute.type
    if kind in (kinds.TUPLE, kinds.LIST):
        return tuple(_value(value, kinds) for value in attribute.values)
    if kind == kinds.TENSORS:
        return _array(attribute.tensors[0])
    if kind == kinds.STRING:
        return [*attribute.strings, attribute.s][0]
    if kind in (kinds.FLOAT, kinds.DOUBLE):
        single = attribute.d if kind == kinds.DOUBLE else attribute.f
        return [*attribute.floats, *attribute.doubles, single][0]
    if kind in (kinds.BOOL, kinds.INT8, kinds.INT32, kinds.INT64, kinds.UINT64):
        return [*attribute.ints, attribute.i][0]
    return None  # NONE, monads and types


def _types(attribute: Any, kinds: Any) -> tuple[TensorType, ...]:
    if attribute.type == kinds.TUPLE:
        return tuple(kind for value in attribute.values for kind in _types(value, kinds))
    return tuple(_type(tensor) for tensor in attribute.tensors)


def _type(tensor: Any) -> TensorType:
    return TensorType(tuple(tensor.dims), DTYPES.get(tensor.data_type, f"type {tensor.data_type}"))


def _array(tensor: Any) -> np.ndarray:
    shape, dtype = _type(tensor)
    if dtype == "bfloat16":  # NumPy has none: widen by 16 zero bits
        bits = np.frombuffer(tensor.raw_data, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(shape)
    return np.frombuffer(tensor.raw_data, dtype).reshape(shape)
