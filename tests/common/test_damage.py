"""Damage stops only what needs the damaged part; whatever is wrong with a file, its reader names the file."""

import contextlib
import itertools
import json
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from common import images, media_file, video
from common.config import build
from common.data import clip_sources, frames, items
from common.data.annotations import read_annotations
from common.data.clip_file import read_clip
from common.data.clip_sources import Files, Want
from common.data.t2v import T2VLoader
from common.data.t2v_config import T2VDataConfig
from common.errors import InputError, MediaError
from common.evaluation import read_clips
from common.given import GivenConfig, read_given
from common.images import read_image, write_png
from common.runs import EvaluateVAEConfig
from common.video import TooShortError, VideoReader
from tests.common.test_video import NUM_FRAMES, H, W, encode, number_of, numbers

SOUND = 48  # frames before the last group of pictures
KINDS = {
    "mp4": ("a.mp4", "libx264", {"b_frames": 3}),
    "mkv": ("a.mkv", "libx264", {"b_frames": 2}),
    "avi": ("a.avi", "mpeg4", {}),
}


def damaged_at_the_end(folder: Path, kind: str) -> Path:
    """A clip whose last key frame, on which the frames after it build, is overwritten."""
    name, codec, options = KINDS[kind]
    path = encode(folder / name, codec, **options)
    with av.open(str(path)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size and p.pts is not None]
        start, size = packets[SOUND][0], packets[SOUND][1]
    data = bytearray(path.read_bytes())
    data[start + 40 : start + size - 1] = b"\x5a" * (size - 41)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=path.name):
        video.probe(path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_damage_at_the_end_leaves_the_beginning_alone(tmp_path, kind):
    path = damaged_at_the_end(tmp_path, kind)
    with VideoReader(path) as reader:
        assert numbers(reader.frames(range(17))) == list(range(17))
        assert reader.fps == pytest.approx(25)
        assert numbers(reader.frames([40, 3])) == [40, 3]
    with VideoReader(path) as reader:
        assert reader.num_frames == NUM_FRAMES
        assert numbers(reader.frames_chosen(lambda total: range(total - 20, total - 15))) == [*range(40, 45)]
        with pytest.raises(MediaError, match=path.name):
            reader.frames([NUM_FRAMES - 1])


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_given_from_a_clip_with_a_damaged_end(tmp_path, kind):
    path = str(damaged_at_the_end(tmp_path, kind))
    for start, keep, wanted in ((0, "0:9", range(9)), (-20, "0:4,-1", [40, 41, 42, 43, 47]), (30, "0", [30])):
        asked = {"num_frames": 8 if start < 0 else 9, "height": H, "width": W}
        (given,) = read_given(GivenConfig(video=path, start=start, keep=keep, **asked), 1, fps=25.0)
        assert [number_of(image_HWC) for image_HWC in given.frames_NHWC] == list(wanted)
        assert given.warnings == ()


@pytest.mark.parametrize("clips", [1, 3, 0])
def test_clips_before_the_damage_are_evaluated(tmp_path, clips):
    path = damaged_at_the_end(tmp_path, "mp4")
    fields = {"vae": {"config": {}, "random_seed": 0}, "input": str(path), "clips_per_video": clips}
    config = build(EvaluateVAEConfig, {**fields, "num_frames": 9, "height": H, "width": W}, "test")
    skipped: dict[str, str] = {}
    found = list(read_clips([path], config, skipped))
    assert [clip.start for clip in found] == ([0, 9, 18, 27, 36][: clips or None])
    assert all(numbers(clip.frames_THWC) == [*range(clip.start, clip.start + 9)] for clip in found)
    assert bool(skipped) == (clips == 0)


def test_training_clips_are_drawn_from_before_the_damage(tmp_path):
    """A file without an index, of which the length is what its packets say."""
    path, firsts = damaged_at_the_end(tmp_path, "avi"), set()
    for seed in range(12):
        with contextlib.suppress(MediaError):
            found = read_clip(path, 5, (1, 1), np.random.default_rng(seed), lambda x_THWC: x_THWC)
            firsts.add(numbers(found)[0])
    assert len(firsts) > 4
    assert max(firsts) <= SOUND


def test_frames_that_cannot_be_decoded_do_not_count(tmp_path):
    """A recording that was switched on between two key frames: it has packets of frames that nobody sees."""
    path = encode(tmp_path / "a.ts", "libx264")
    with av.open(str(path)) as file:
        starts = [packet.pos for packet in file.demux(video=0) if packet.size]
    data = path.read_bytes()
    path.write_bytes(data[: 3 * 188] + data[starts[3] :])  # with the tables of what is in it
    with VideoReader(path) as reader:
        assert len(reader._listed) > NUM_FRAMES - 12, "the file has no such packets, so this tests nothing"
        assert numbers(reader.frames_chosen(lambda total: [total - 20])) == [NUM_FRAMES - 20]
        assert reader.num_frames == NUM_FRAMES - 12


def test_a_stream_that_begins_in_the_middle_is_named(tmp_path, monkeypatch):
    """PyAV 18.1 then looks for the stream beyond the end of its list, or not: it depends on old memory."""
    path = encode(tmp_path / "a.ts", "libx264")

    def begins(file: media_file.FFmpegFile):
        yield from itertools.islice(file._container.decode(file._stream), 5)
        raise IndexError("list index out of range")

    monkeypatch.setattr(media_file.FFmpegFile, "_decoded", begins)
    with pytest.raises(MediaError, match=r"a\.ts: got 'list index out of range' after 5 frames"):
        video.read_frames(path)


def test_a_clip_shorter_than_asked_for_says_how_long_it_is(tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264")
    with VideoReader(path) as reader, pytest.raises(TooShortError, match="the file has 60 frames"):
        reader.frames_chosen(lambda total: [total])


def test_a_title_that_is_no_utf8_is_no_obstacle(tmp_path):
    path = encode(tmp_path / "a.mp4", "libx264")
    data = path.read_bytes()
    assert data.count(b"VideoHandler") == 1
    path.write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    assert numbers(video.read_frames(path, [3])) == [3]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> list[Path]:
    """One file of each kind that is read."""
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = [rng.integers(256, size=(5, 8, 4), dtype=np.uint8) for _ in range(3)]
    stills = [Image.fromarray(rgba).resize((40, 30)) for rgba in pixels]
    moving = {"save_all": True, "append_images": stills[1:]}
    for name, options in (
        *(("a.png", {}), ("e.png", {"exif": exif}), ("a.webp", {"exif": exif}), ("a.tiff", {})),
        *(("l.tiff", {"compression": "tiff_lzw"}), ("m.webp", moving), ("m.png", moving), ("m.gif", moving)),
    ):
        stills[0].save(folder / name, **options)
    stills[0].convert("RGB").save(folder / "a.jpg", exif=exif)
    stills[0].convert("RGB").save(folder / "a.bmp")
    stills[0].convert("P").save(folder / "p.png")
    for name in ("d.png", "d.tiff"):
        cv2.imwrite(str(folder / name), rng.integers(65536, size=(20, 20, 3), dtype=np.uint16))
    for name, codec, options in KINDS.values():
        encode(folder / name, codec, **options)
    encode(folder / "a.ts", "libx264", b_frames=2)
    encode(folder / "a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, pix_fmt="yuva420p")
    encode(folder / "a.mov", "qtrle", pix_fmt="argb")
    return sorted(folder.iterdir())


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The content of a file after a bad transfer, a bad disk or a bad day."""
    first, changed = int(rng.integers(len(data))), bytearray(data)
    last = first + int(rng.integers(1, len(data)))
    kind = rng.integers(8)
    if kind == 0:
        return data[:first]
    if kind == 1:
        return b"" if rng.random() < 0.5 else b"Dear reader,\n" * 40
    if kind == 2:
        changed[first:last] = bytes(len(changed[first:last]))
    elif kind == 3:
        del changed[first : first + 40]
    elif kind == 4:
        changed[first:first] = rng.bytes(40)
    else:  # single bytes: of the header, or anywhere
        for place in rng.integers(len(data) if kind == 5 else min(200, len(data)), size=8):
            changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


def every_reader(path: Path):
    """What a user can do with a file, each for itself."""

    def exactly() -> None:
        with VideoReader(path) as reader:
            reader.frames([5])
            assert reader.fps > 0
            reader.frames_chosen(lambda total: [total - 1, 0])
            assert reader.info.num_frames > 0

    size = {"num_frames": 9, "height": 32, "width": 32}
    yield lambda: read_image(path)
    yield exactly
    yield lambda: frames.read_frames(path, np.arange(50, 55), lambda x: x, 25.0)
    yield lambda: read_clip(path, 5, (1, 3), np.random.default_rng(0), lambda x: x)
    if path.suffix == ".txt":  # a list of files
        return
    yield lambda: read_given(GivenConfig(image=str(path), **size), 1)
    yield lambda: read_given(GivenConfig(video=str(path), start=-4, keep="0:3", **size), 1)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about EXIF data that it passes over
def test_a_file_that_is_anyhow_damaged_is_named(originals, tmp_path):
    rng, passed, messages = np.random.default_rng(0), 0, []
    for number in range(200):
        original = originals[number % len(originals)]
        suffix = original.suffix if rng.random() < 0.9 else str(rng.choice([".png", ".mp4", ".gif", ".txt"]))
        path = tmp_path / f"mutated{suffix}"
        path.write_bytes(mutated(original.read_bytes(), rng))
        for read in every_reader(path):
            try:
                read()
                passed += 1
            except (InputError, OSError) as error:
                messages.append(str(error))
    assert passed > 100
    assert len(messages) > 400
    assert not [message for message in messages if "mutated" not in message or "\n" in message]


def test_annotations_that_are_anyhow_damaged_are_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    entry = {"path": "a.mp4", "cap": ["one"], "resolution": {"height": 9, "width": 9}, "num_frames": 9}
    parquet.write_table(pa.Table.from_pylist([entry] * 50), tmp_path / "a.parquet")
    data, rng, messages = (tmp_path / "a.parquet").read_bytes(), np.random.default_rng(0), []
    for _ in range(100):
        (tmp_path / "mutated.parquet").write_bytes(mutated(data, rng))
        try:
            read_annotations(tmp_path / "mutated.parquet")
        except (InputError, OSError) as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all("mutated" in message for message in messages)


BUGS = [ValueError("cannot be broadcast"), TypeError("a bug"), IndexError("a bug"), struct.error("a bug")]


def planted(bug: Exception):
    def raises(*_: object, **__: object) -> None:
        raise bug

    return raises


@pytest.fixture
def folder(tmp_path):
    write_png(tmp_path / "a.png", np.zeros((64, 96, 3), np.uint8))
    encode(tmp_path / "a.mp4", "libx264")
    return tmp_path


@pytest.mark.parametrize("bug", BUGS, ids=repr)
@pytest.mark.parametrize(
    ("module", "name", "file"),
    [
        (items, "read_frames", "a.mp4"),
        (items, "read_image", "a.png"),
        (items.T2VReader, "_fit", "a.mp4"),
        (items.T2VReader, "_fit", "a.png"),
        (frames.IndexedFile, "_pick", "a.mp4"),
    ],
)
def test_a_bug_is_not_a_broken_clip_of_the_transformer(folder, monkeypatch, module, name, file, bug):
    size = {"num_frames": 60 if file == "a.mp4" else 1, "resolution": {"height": H, "width": W}}
    (folder / "a.jsonl").write_text(json.dumps({"path": file, "cap": "a", "fps": 25, **size}))
    sizes = {"sizes": {"max_tokens": 24, "hw_stride": 16}, "num_frames": 17, "min_frames": 5, "workers": 0}
    config = build(T2VDataConfig, {"annotations": str(folder / "a.jsonl"), **sizes}, where="test")
    loader = T2VLoader(config, 1, seed=0)
    monkeypatch.setattr(module, name, planted(bug))
    with pytest.raises(type(bug), match=str(bug)):
        next(loader.batches(0, 1))
    assert not len(loader.broken)


@pytest.mark.parametrize("bug", BUGS, ids=repr)
@pytest.mark.parametrize(
    ("module", "name", "num_frames"),
    [
        (clip_sources, "read_clip", 5),
        (clip_sources, "read_image", 1),
        (clip_sources, "resize_crop", 5),
        (video.VideoReader, "_collect", 5),
        (images, "on_white", 1),
    ],
)
def test_a_bug_is_not_a_broken_file_of_the_vae(folder, monkeypatch, module, name, num_frames, bug):
    if name == "_collect":  # the exact reader, which files without an index need
        (folder / "a.mp4").unlink()
        encode(folder / "a.avi", "mpeg4")
    if name == "on_white":
        Image.new("RGBA", (96, 64)).save(folder / "a.png")
    source = Files(str(folder), seed=0)
    monkeypatch.setattr(module, name, planted(bug))
    with pytest.raises(type(bug), match=str(bug)):
        source.draw(0, np.random.default_rng(0), Want(num_frames, 32, 32))


@pytest.mark.parametrize("bug", BUGS, ids=repr)
def test_a_bug_is_not_a_skipped_file_of_the_evaluation(folder, monkeypatch, bug):
    fields = {"vae": {"config": {}, "random_seed": 0}, "input": str(folder), "num_frames": 9}
    config = build(EvaluateVAEConfig, {**fields, "height": 32, "width": 32}, "test")
    skipped: dict[str, str] = {}
    monkeypatch.setattr("common.evaluation.resize_crop", planted(bug))
    with pytest.raises(type(bug), match=str(bug)):
        list(read_clips([folder / "a.mp4"], config, skipped))
    assert not skipped
