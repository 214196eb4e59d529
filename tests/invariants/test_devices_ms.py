"""Where MindSpore runs: an NPU that is left unused is said."""

import importlib

import pytest

pytest.importorskip("mindspore", reason="these are promises of the MindSpore tree")
pytestmark = pytest.mark.ms


def test_an_npu_that_is_not_taken_is_said(tmp_path, monkeypatch, capsys):
    runtime = importlib.import_module("ms.runtime")
    monkeypatch.setattr(runtime, "NPUS", str(tmp_path / "davinci[0-9]*"))
    assert runtime.setup("auto") == "cpu"
    assert capsys.readouterr().err == ""
    (tmp_path / "davinci_manager").touch()
    assert runtime.setup("auto") == "cpu"
    assert capsys.readouterr().err == ""
    (tmp_path / "davinci0").touch()
    assert runtime.setup("auto") == "cpu"
    assert "takes the CPU, though there is an NPU" in capsys.readouterr().err
    assert runtime.setup("cpu") == "cpu"
    assert capsys.readouterr().err == "", "asked for"
