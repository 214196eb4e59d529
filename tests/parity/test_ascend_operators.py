"""The Ascend proof without an Ascend: tools/ascend_kernels.yaml has every operator of every graph.

`pytest tests/parity/test_ascend_operators.py -s` prints the counts that docs/ascend.md quotes.
"""

import ctypes
import functools
from pathlib import Path

import numpy as np
import pytest

from common.optim import OptimConfig, controls
from tests.parity.ascend_graphs import GRAPHS, family, mindspore, nn, on_ascend, update_of
from tools import ascend_operators
from tools.ascend_graph import Graph

pytestmark = [pytest.mark.ms, pytest.mark.usefixtures("graph_mode")]

QUICK = ("sampling", "text", "OD-VAE encoder float32")  # a few seconds each
REPLACED = (
    "ReduceStd Conv2D Conv2DBackpropInput Conv2DBackpropFilter Conv3D BiasAdd MaxPool MaxPoolGrad MaxPool3D"
)
GIVEN = [
    pytest.param(name, marks=() if name.startswith(QUICK) else pytest.mark.slow, id=name) for name in GRAPHS
]


@functools.cache
def graph(name: str) -> Graph:
    return GRAPHS[name]()


@pytest.mark.parametrize("name", GIVEN)
def test_every_operator_has_an_entry(name):
    table = ascend_operators.load()
    assert not ascend_operators.faults(table, graph(name), family(name))
    counts = ", ".join(f"{operator} {n}" for operator, n in graph(name).count().most_common())
    print(f"\n{name}: {ascend_operators.compiled_forms(table, graph(name))} kernels are compiled\n{counts}")
    assert not set(REPLACED.split()) & set(graph(name).count())


class UpdateBy(nn.Cell):
    """The optimizer's update by gradients that are no tuple: a tuple's would be constants."""

    def __init__(self, params: dict):
        super().__init__(auto_prefix=False)
        self.update = update_of(None, params).update

    def construct(self, numbers, terms, *grads):
        return self.update(grads, numbers, terms)


def test_parameters_are_cut_out_of_their_vector_at_once():
    grads = [mindspore.Tensor(np.ones((i + 1, 2), np.float32)) for i in range(5)]
    params = {str(i): mindspore.Parameter(grad, name=str(i)) for i, grad in enumerate(grads)}
    numbers = mindspore.Tensor(controls(OptimConfig(), 1, 1e-5, 0.99))
    terms = mindspore.Tensor(np.ones(1, np.float32))
    counts = on_ascend(lambda: UpdateBy(params), [numbers, terms, *grads]).count()
    assert counts["SplitWithSize"] == 1
    assert not counts["Slice"]


def test_an_operator_without_an_entry_shows():
    table, name = ascend_operators.load(), "text projection bfloat16"
    (dense, *_) = graph(name).find("Dense")
    changed = graph(name).with_node(dense.name, operator="Unheard")
    (fault,) = ascend_operators.faults(table, changed, family(name))
    assert fault == "Unheard (bfloat16): no entry; find its kernel"
    entry = table.operators["Dense"].replace(dtypes=("float32",))
    narrower = table.replace(operators={**table.operators, "Dense": entry.model_dump()})
    (fault,) = ascend_operators.faults(narrower, graph(name), family(name))
    assert fault == "Dense: no bfloat16; find whether its kernel has"
    (fault, *_) = ascend_operators.faults(table, graph(name), "I3D")
    assert fault.endswith("I3D is not among its graphs; add it")


@pytest.mark.slow
def test_no_entry_says_too_much():
    found: dict[str, tuple[set, set]] = {}
    for name in GRAPHS:
        for operator, dtypes in ascend_operators.uses(graph(name)).items():
            seen = found.setdefault(operator, (set(), set()))
            seen[0].update(dtypes)
            seen[1].add(family(name))
    entries = ascend_operators.load().operators
    assert {name: (set(e.dtypes), set(e.graphs)) for name, e in entries.items()} == found


def test_the_page_has_the_table():
    page = ascend_operators.PAGE.read_text(encoding="utf-8")
    assert page == ascend_operators.page_with(page, ascend_operators.load()), (
        "run `python -m tools.ascend_operators`"
    )


# OpDef of 2.7: name (a pointer to its characters), three vectors, a map, a reference; then these flags
DISPATCH, VIEW = 144, 145


def definition(operator: str) -> tuple[bool, bool] | None:
    """(goes to aclnn, is a view) as the installed library defines an operator; None for those it does not
    define so.
    """
    library = ctypes.CDLL(str(Path(mindspore.__file__).parent / "lib" / "libmindspore_ops.so"))
    try:
        found = ctypes.c_char.in_dll(library, f"_ZN9mindspore3ops{len(operator) + 1}g{operator}E")
    except ValueError:
        return None
    start = ctypes.addressof(found)
    name = ctypes.string_at(ctypes.c_void_p.from_address(start).value or 0, len(operator))
    assert name == operator.encode(), "the definition has another layout than in 2.7"
    flags = ctypes.string_at(start + DISPATCH, VIEW - DISPATCH + 1)
    return flags[0] == 1, flags[1] == 1


@pytest.mark.skipif(not mindspore.__version__.startswith("2.7."), reason="reads the layout of MindSpore 2.7")
@pytest.mark.parametrize("operator", ascend_operators.load().operators)
def test_mindspore_dispatches_as_the_table_says(operator):
    entry, known = ascend_operators.load().operators[operator], definition(operator)
    if entry.kernel == "aclop":
        assert known in (None, (False, False)) or entry.source == "none"
    else:
        assert known is not None
        assert known[0]
        assert known[1] or entry.kernel == "aclnn"
