"""ms/ and pt/ are one program in two dialects. Read as text: neither framework is needed here."""

import ast
import difflib

import pytest

from tools.mirror import ROOT, SEAMS, canonical, files, to_pytorch

NAMES = sorted(files("ms") & files("pt"))


def test_same_files():
    assert files("ms") == files("pt"), f"only in one tree: {sorted(files('ms') ^ files('pt'))}"


def test_few_seams():
    assert len(SEAMS) <= 8
    assert set(SEAMS) <= set(NAMES), "a seam that is no file"


@pytest.mark.parametrize("name", NAMES)
def test_same_code(name):
    ours, theirs = canonical("ms", name), canonical("pt", name)
    drift = "\n".join(
        difflib.unified_diff(
            ours.splitlines(), theirs.splitlines(), f"ms/{name}", f"pt/{name}", "", "", 2, ""
        )
    )
    assert not drift, (
        f"the trees drifted apart; run python -m tools.mirror or declare {name} a seam:\n{drift}"
    )


@pytest.mark.parametrize("tree", ["ms", "pt"])
def test_no_tree_imports_the_other(tree):
    other = {"ms": {"torch", "pt"}, "pt": {"mindspore", "mindone", "ms"}}[tree]
    for path in sorted((ROOT / tree).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots = {(node.module or "").split(".")[0]}
            else:
                continue
            assert not roots & other, f"{path.name} imports {roots & other}"


def test_common_needs_no_framework():
    for path in sorted((ROOT / "common").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                assert not any(f in text for f in ("import torch", "mindspore", "mindone", "from torch")), (
                    path.name
                )


def test_a_changed_twin_is_noticed():
    source = "def construct(self, x):\n    return x + 1\n"
    mutated = to_pytorch(source).replace("+ 1", "+ 2")
    assert ast.unparse(ast.parse(to_pytorch(source))) != ast.unparse(ast.parse(mutated))
    assert "forward" in to_pytorch(source)
