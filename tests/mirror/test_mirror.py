"""ms/ and pt/ are one program in two dialects. Read as text: neither framework is needed here."""

import ast
import difflib
import shutil

import pytest

from tools import mirror
from tools.mirror import ROOT, SEAMS, canonical, files

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


def test_a_changed_twin_is_noticed(tmp_path, monkeypatch):
    """One changed constant in a copy of a real twin, and a changed signature of a seam, must both show."""
    for tree in ("ms", "pt"):
        shutil.copytree(ROOT / tree, tmp_path / tree)
    monkeypatch.setattr(mirror, "ROOT", tmp_path)
    for name, old, new in (
        ("resample.py", "* 0.75", "* 0.7"),
        ("kernels.py", "def device()", "def device(x)"),
    ):
        assert canonical("ms", name) == canonical("pt", name)
        path = tmp_path / "pt" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        assert canonical("ms", name) != canonical("pt", name)
