"""The caption cleaner of diffusers' DeepFloyd IF pipeline, as an oracle: what ours is compared with.

It is compiled from the installed package's source, so that neither torch nor the pipeline is imported. The
cleaner of Open-Sora Plan v1.3 is a variant of it, which the oracle follows in two places:

* Ideographs (4e00 to 9fff) are removed for T5 only. mT5 knows Chinese, and the recorded captions keep it.
* The text is stripped right after its Unicode is repaired. PixArt and Open-Sora Plan (where it can keep
  Chinese) repair in a helper that ends with a strip; diffusers has the helper's lines without that one. The
  recorded captions do not tell the two apart: all were cleaned twice, and the second pass begins with one. It
  shows where both passes have an end to clean: "['a cat, ']" would keep its comma.

A strip further down has no effect in any of them, as its result is not used; that is left as it is.
"""

import ast
import html
import importlib.util
import re
import urllib.parse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftfy
import pytest
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, XMLParsedAsHTMLWarning

PIPELINE = "pipelines/deepfloyd_if/pipeline_if.py"
IDEOGRAPHS = r"[\u4e00-\u9fff]+"
FIRST_AFTER_REPAIR = r"\b[a-zA-Z]{1,3}\d{3,15}\b"


class Rewrites:
    """Stands in for the module `re` of the cleaner, with the two differences of v1.3."""

    compile = staticmethod(re.compile)
    findall = staticmethod(re.findall)

    def __init__(self, keep_chinese: bool) -> None:
        self.keep_chinese = keep_chinese
        self.met: list[str] = []

    def sub(self, pattern: str | re.Pattern[str], replacement: str, text: str) -> str:
        if pattern in (IDEOGRAPHS, FIRST_AFTER_REPAIR):
            self.met.append(str(pattern))
        if pattern == IDEOGRAPHS and self.keep_chinese:
            return text
        if pattern == FIRST_AFTER_REPAIR:
            text = text.strip()
        return re.sub(pattern, replacement, text)


def oracle(keep_chinese: bool) -> Callable[[str], str]:
    """The cleaner applied twice, as upstream does; raises what BeautifulSoup raises where it cannot parse."""
    rewrites = Rewrites(keep_chinese)
    cleaner = _cleaner_of_diffusers(rewrites)

    def clean(text: str) -> str:
        rewrites.met.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
            warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
            text = cleaner(cleaner(text))
        assert rewrites.met == [IDEOGRAPHS, FIRST_AFTER_REPAIR] * 2, "diffusers has another recipe now"
        return text

    return clean


def _cleaner_of_diffusers(rewrites: Rewrites) -> Callable[[str], str]:
    found = importlib.util.find_spec("diffusers")
    if found is None or not found.submodule_search_locations:
        pytest.skip("diffusers, whose caption cleaner is the oracle, is not installed")
    source = Path(found.submodule_search_locations[0], PIPELINE).read_text(encoding="utf-8")
    pipeline = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    pipeline.bases, pipeline.body = [], [node for node in pipeline.body if _is_of_the_cleaner(node)]
    names: dict[str, Any] = {
        "BeautifulSoup": BeautifulSoup,
        "ftfy": ftfy,
        "html": html,
        "re": rewrites,
        "ul": urllib.parse,
    }
    exec(compile(ast.Module([pipeline], []), PIPELINE, "exec"), names)
    return names[pipeline.name]()._clean_caption


def _is_of_the_cleaner(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "bad_punct_regex"
    return isinstance(node, ast.FunctionDef) and node.name == "_clean_caption"
