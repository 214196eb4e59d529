"""Which kernel an Ascend has for every operator of our graphs: the table of ascend_kernels.yaml.

`python -m tools.ascend_operators` writes it into docs/ascend.md.
"""

import sys
from pathlib import Path
from typing import Literal

import yaml

from common.config import Config, build
from common.errors import InputError

from .ascend_graph import BOOKKEEPING, Graph

TABLE = Path(__file__).with_name("ascend_kernels.yaml")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "ascend.md"
BEGIN, END = "<!-- python -m tools.ascend_operators -->", "<!-- end of what it writes -->"


class Entry(Config):
    """What is known of one operator."""

    kernel: Literal["aclnn", "aclop", "view"]
    dtypes: tuple[str, ...]
    source: str
    graphs: tuple[str, ...]


class Table(Config):
    """Sources by their key, operators by their name in the graph."""

    sources: dict[str, str]
    operators: dict[str, Entry]


def load() -> Table:
    """The table.

    Raises:
        InputError: it is malformed, or cites a source that it does not list.
    """
    table = build(Table, yaml.safe_load(TABLE.read_text(encoding="utf-8")), TABLE.name)
    for name, entry in table.operators.items():
        if entry.source not in table.sources:
            raise InputError(
                f"{TABLE.name}: {name}: source: got {entry.source!r}, wanted one of "
                f"{', '.join(table.sources)}; add it there"
            )
    return table


def uses(graph: Graph) -> dict[str, set[str]]:
    """The dtypes of the tensors that go into and come out of every operator."""
    found: dict[str, set[str]] = {}
    for node in graph.nodes.values():
        if node.operator not in BOOKKEEPING:
            found.setdefault(node.operator, set()).update(graph.dtypes(node))
    return found


def faults(table: Table, graph: Graph, family: str) -> list[str]:
    """What the table does not know of a graph: an operator, one of its dtypes, or that it occurs there."""
    found = []
    for name, dtypes in uses(graph).items():
        entry = table.operators.get(name)
        if entry is None:
            found.append(f"{name} ({', '.join(sorted(dtypes))}): no entry; find its kernel")
        elif not dtypes <= set(entry.dtypes):
            found.append(
                f"{name}: no {', '.join(sorted(dtypes - set(entry.dtypes)))}; find whether its kernel has"
            )
        elif family not in entry.graphs:
            found.append(f"{name}: {family} is not among its graphs; add it")
    return found


def compiled_forms(table: Table, graph: Graph) -> int:
    """How many kernels CANN compiles for a graph: operators without aclnn kernel, each for its types and for
    the constants it is given.
    """
    forms = set()
    for node in graph.nodes.values():
        if node.operator in table.operators and table.operators[node.operator].kernel == "aclop":
            given = tuple(graph.type_of(name) or repr(graph.constants.get(name)) for name in node.inputs)
            forms.add((node.operator, given, node.types, repr(sorted(node.attributes.items()))))
    return len(forms)


def markdown(table: Table) -> str:
    """The table for docs/ascend.md."""
    lines = ["| operator | kernel | dtypes | graphs | source |", "|---|---|---|---|---|"]
    for name, entry in table.operators.items():
        cells = (name, entry.kernel, ", ".join(entry.dtypes), ", ".join(entry.graphs), entry.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"* {key}: {text}" for key, text in table.sources.items())])


def page_with(text: str, table: Table) -> str:
    """The text of docs/ascend.md with the table as it is now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown(table)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit(f"error: got {' '.join(sys.argv[1:])}; python -m tools.ascend_operators takes no arguments")
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), load()), encoding="utf-8")


if __name__ == "__main__":
    main()
