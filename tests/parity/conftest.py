"""Fixtures of tests that look at MindSpore's graphs."""

import pytest


@pytest.fixture
def graph_mode():
    """MindSpore compiles whole graphs on the CPU, as the programs set it up; afterwards as before."""
    import mindspore

    from ms import runtime

    before = mindspore.get_context("mode")
    runtime.setup("cpu")
    yield
    mindspore.set_context(mode=before)
