"""Casting: rounded as the frameworks round, the report true, nothing overflows in silence."""

import numpy as np
import pytest

from tools.convert.casting import CastTensor, Rounding, cast, narrow, widen
from tools.convert.tensors import DTYPES, ArrayTensor

from .helpers import raw, read_raw, run, write_safetensors

F32, F16, BF16 = DTYPES["float32"], DTYPES["float16"], DTYPES["bfloat16"]


def all_patterns():
    """Float32 values around every bfloat16: exact, below, at and above the middle to the next."""
    high = np.arange(2**16, dtype=np.uint32) << 16
    low = np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    return (high[:, None] | low).reshape(-1).view(np.float32)


def test_every_half_survives_widening():
    for dtype in (F16, BF16):
        bits = np.arange(2**16, dtype=np.uint16)
        bits = bits if dtype == BF16 else bits.view(np.float16)
        wide = widen(bits, dtype)
        finite = ~np.isnan(wide)
        np.testing.assert_array_equal(narrow(wide, dtype)[finite], bits[finite])
        assert np.isnan(widen(narrow(wide[~finite], dtype), dtype)).all()


@pytest.mark.pt
def test_bfloat16_as_torch_rounds():
    import torch

    values = all_patterns()
    expected = torch.from_numpy(values).to(torch.bfloat16)
    ours = widen(narrow(values, BF16), BF16)
    np.testing.assert_array_equal(ours, expected.float().numpy())
    normal = ~np.isnan(values)
    np.testing.assert_array_equal(narrow(values, BF16)[normal], expected.view(torch.uint16).numpy()[normal])


@pytest.mark.parametrize("target", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32", "float64"])
def test_the_report_is_true(tmp_path, source, target):
    rng = np.random.default_rng(0)
    wide = {name: rng.normal(0, 10.0**-i, (50, 40)).astype(np.float32) for i, name in enumerate("abc")}
    wide["a"][3, 4] = np.pi * 4000
    wide["b"][0, 0] = 1e-30  # becomes zero in float16
    stored = {
        name: narrow(v if source != "float64" else v * np.float64(1.1), DTYPES[source])
        for name, v in wide.items()
    }
    tensors = {name: (source, (50, 40), bits.tobytes()) for name, bits in stored.items()}
    tensors["count"] = ("int64", (), bytes(8))
    write_safetensors(tmp_path / "in.safetensors", tensors)
    told = run(tmp_path / "in.safetensors", tmp_path / "out.safetensors", kind="any", dtype=target)
    result = read_raw(tmp_path / "out.safetensors")
    assert result["count"] == tensors["count"]
    report = [line.removeprefix("cast      ") for line in told if line.startswith("cast")]
    if source == target:
        assert result == tensors
        assert report == []
        return
    before = {name: widen(bits, DTYPES[source]).astype(np.float64) for name, bits in stored.items()}
    after = {
        n: widen(narrow(widen(b, DTYPES[source]), DTYPES[target]), DTYPES[target]) for n, b in stored.items()
    }
    for name in stored:
        assert result[name] == (target, (50, 40), narrow(after[name], DTYPES[target]).tobytes())
    error = {name: np.abs(after[name] - before[name]) for name in stored}
    worst = max(error, key=lambda name: error[name].max())
    assert report[0].startswith(f"3 tensors to {target}")
    if not error[worst].max():
        assert report[0].endswith("no value changed")
        return
    assert f"worst absolute rounding {error[worst].max():.3g} in {worst}" in report[1]
    relative = {
        n: np.divide(e, np.abs(before[n]), out=np.zeros_like(e), where=before[n] != 0)
        for n, e in error.items()
    }
    worst = max(relative, key=lambda name: relative[name].max())
    assert f"worst relative rounding {relative[worst].max():.3g} in {worst}" in report[2]
    flushed = sum(int(((after[n] == 0) & (before[n] != 0)).sum()) for n in stored)
    assert (f"{flushed} values became zero" in " ".join(report)) == (flushed > 0)


def test_overflow_is_an_error_that_names_the_tensor(tmp_path):
    values = {"fine": np.float32([1, -65504, np.inf, np.nan]), "too.large": np.float32([2, 65520.0, 3])}
    source = write_safetensors(tmp_path / "in.safetensors", raw(values))
    with pytest.raises(ValueError, match=r"too\.large: 65520 is too large for float16; use --dtype bfloat16"):
        run(source, tmp_path / "out.safetensors", kind="any", dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["in.safetensors"]
    told = run(source, tmp_path / "out.safetensors", kind="any", dtype="float16", allow_overflow=True)
    assert any("1 values became infinite" in line for line in told)
    result = np.frombuffer(read_raw(tmp_path / "out.safetensors")["too.large"][2], np.float16)
    np.testing.assert_array_equal(result, np.float16([2, np.inf, 3]))


def test_the_largest_numbers():
    limit = np.float32(3.3895314e38)  # of bfloat16; float32 goes on
    for value, overflows in ((limit, False), (np.float32(3.4e38), True)):
        tensor = ArrayTensor(F32, (1,), np.array([value], np.float32))
        pieces = CastTensor(BF16, (1,), "x", tensor, Rounding("bfloat16")).pieces()
        if overflows:
            with pytest.raises(ValueError, match=r"x: 3\.4e\+38 is too large for bfloat16"):
                list(pieces)
        else:
            assert len(b"".join(pieces)) == 2


def test_keep_changes_nothing():
    tensors = {"x": ArrayTensor(F32, (2,), np.float32([1, 2]))}
    assert cast(tensors, "keep")[0] is tensors
