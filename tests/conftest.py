"""Test session set-up: quiet frameworks, and TREE_ONLY=ms|pt to prove that one tree runs without the other's
framework.
"""

import importlib.abc
import importlib.util
import os
import sys
import tempfile

import pytest

FRAMEWORK = {"ms": "mindspore", "pt": "torch"}
ONLY = os.environ.get("TREE_ONLY", "")

os.environ.setdefault("GLOG_v", "4")
os.environ.setdefault("MS_OM_PATH", tempfile.gettempdir())  # where MindSpore leaves its failed graphs
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cache-")  # of digests; the user's own is left alone
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for every core
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class Blocker(importlib.abc.MetaPathFinder):
    """Pretends that packages are not installed: importing them fails, and asking for them finds nothing."""

    def __init__(self, *names: str):
        self.names = names
        self.ask = importlib.util.find_spec

    def install(self):
        sys.meta_path.insert(0, self)
        importlib.util.find_spec = self.find_none  # transformers asks before it imports

    def find_none(self, name, package=None):
        return None if name.split(".")[0] in self.names else self.ask(name, package)

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{fullname} is blocked by TREE_ONLY={ONLY}", name=fullname)


if ONLY:
    Blocker(*{"ms": ["torch"], "pt": ["mindspore", "mindone"]}[ONLY]).install()


def available(tree: str) -> bool:
    """Whether the framework of a tree can be imported here."""
    return importlib.util.find_spec(FRAMEWORK[tree]) is not None


def pytest_collection_modifyitems(items):
    for item in items:
        for tree, framework in FRAMEWORK.items():
            if tree in item.keywords and not available(tree):
                item.add_marker(
                    pytest.mark.skip(reason=f"{framework} is not installed (or blocked by TREE_ONLY)")
                )


MS = pytest.param("ms", marks=pytest.mark.ms)
SLOW_MS = pytest.param("ms", marks=[pytest.mark.ms, pytest.mark.slow])  # compiles for long
PT = pytest.param("pt", marks=pytest.mark.pt)
TREES = [MS, PT]
ONLY_PT = pytest.mark.parametrize("tree", [PT], indirect=True)  # of what both trees have from common/
PT_AND_SLOW_MS = pytest.mark.parametrize("tree", [PT, SLOW_MS], indirect=True)


def pytest_generate_tests(metafunc):
    """A test with a `tree` argument runs once in each tree whose framework is here."""
    if "tree" in metafunc.fixturenames and not any(
        "tree" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        metafunc.parametrize("tree", TREES, indirect=True)


@pytest.fixture
def tree(request):
    """A `Tree` on the CPU."""
    from tools.parity.tree import Tree

    return Tree(request.param)
