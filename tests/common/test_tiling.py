"""The parts of a tiled clip cover it once, their weights sum to one, and a part alone is the whole."""

from itertools import pairwise

import numpy as np
import pytest

from common.tiling import TilingConfig, causal_frames, decode_plan, encode_plan, space_spans, time_spans

STRIDES = [(4, 1), (8, 1), (1, 4), (1, 8)]  # of encoders, then of decoders


def length(part):
    return part.stop - part.start


@pytest.mark.parametrize(("stride_in", "stride_out"), STRIDES)
@pytest.mark.parametrize(("tile", "overlap"), [(4, 1), (4, 2), (5, 2), (8, 0), (16, 3), (0, 0)])
def test_weights_of_every_position_sum_to_one(stride_in, stride_out, tile, overlap):
    tiling = TilingConfig(tile_size=tile, overlap_size=overlap)
    for size in range(1, 40):
        weights = np.zeros(size * stride_out)
        read = np.zeros(size * stride_in, bool)
        before = None
        for span in space_spans(size, tiling, stride_in, stride_out):
            read[span.read] = True
            start = span.read.start // stride_in * stride_out
            own = np.ones(length(span.keep))
            own[: len(span.fade)] = span.fade
            weights[start : start + len(own)] += own
            if before is not None:  # it has what is shared, at the same place, beyond what it keeps
                assert before.read.start // stride_in * stride_out + before.keep.stop == start
                assert before.keep.stop + len(span.fade) == length(before.read) // stride_in * stride_out
                weights[start : start + len(span.fade)] += 1 - np.array(span.fade)
                assert len(span.fade) <= length(before.keep), "it would reach what faded in there"
            before = span
        assert read.all()
        np.testing.assert_allclose(weights, 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stride_in", "stride_out"), [(4, 1), (2, 1), (1, 4), (1, 2)])
@pytest.mark.parametrize(("window", "overlap"), [(2, 1), (5, 1), (6, 2), (10, 2), (6, 5), (0, 2)])
def test_windows_keep_every_frame_once(stride_in, stride_out, window, overlap):
    tiling = TilingConfig(window_frames=window, overlap_frames=overlap)
    for frames in range(1, 40):
        spans = time_spans(frames, tiling, stride_in, stride_out)
        kept = [
            span.read.start // stride_in * stride_out + i
            for span in spans
            for i in range(span.keep.start, span.keep.stop)
        ]
        assert kept == list(range(causal_frames(frames, stride_out)))
        assert spans[-1].read.stop == causal_frames(frames, stride_in)
        for span in spans:
            assert length(span.read) % stride_in == 1 % stride_in, "no length a causal VAE takes"
            latents = (length(span.read) - 1) // stride_in + 1
            assert span.keep.stop == causal_frames(latents, stride_out)
            assert not window or latents <= window
        assert all(a.read.start < b.read.start for a, b in pairwise(spans))


def test_the_reference_s_windows():
    """Ten latents with the defaults: 0 to 6, then 4 to 10, which drops two latents, that is five frames."""
    first, second = time_spans(10, TilingConfig(), 1, 4)
    assert (first.read, first.keep) == (slice(0, 6), slice(0, 21))
    assert (second.read, second.keep) == (slice(4, 10), slice(5, 21))


def test_the_reference_s_tiles():
    """Seven columns in tiles of four that share one: the last lies in the overlap and counts all the same."""
    spans = space_spans(7, TilingConfig(tile_size=4, overlap_size=1), 1, 8)
    assert [span.read for span in spans] == [slice(0, 4), slice(3, 7), slice(6, 7)]
    assert [span.keep for span in spans] == [slice(0, 24), slice(0, 24), slice(0, 8)]
    assert spans[1].fade == spans[2].fade == tuple(i / 8 for i in range(8))


@pytest.mark.parametrize("tiling", [TilingConfig(), TilingConfig(window_frames=0, tile_size=0)])
def test_what_fits_in_one_part_is_not_cut(tiling):
    plan = encode_plan((6, 64, 3), (4, 8, 8), tiling)
    assert [[span.read for span in axis] for axis in (plan.time, plan.rows, plan.columns)] == [
        [slice(0, 21)],
        [slice(0, 512)],
        [slice(0, 24)],
    ]
    plan = decode_plan((6, 64, 3), (4, 8, 8), tiling)
    for (span,), size in zip((plan.time, plan.rows, plan.columns), (21, 512, 24), strict=True):
        assert (span.keep, span.fade) == (slice(0, size), ())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_frames": 6, "overlap_frames": 0}, "overlap_frames is 0 and window_frames 6"),
        ({"window_frames": 2, "overlap_frames": 2}, "at least 1 and less than the window"),
        ({"tile_size": 8, "overlap_size": 5}, "overlap_size is 5; it must be at most half of tile_size 8"),
        ({"tile_size": -1}, "greater than or equal to 0"),
        ({"tile": 8}, "Extra inputs"),
    ],
)
def test_tilings_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        TilingConfig(**fields)
