"""Pictures and clips as conditions: every kind of file is taken, or refused with the way out."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from common.config import load
from common.given import GivenConfig, parse_keep, read_given
from common.models import TransformerConfig, VAEConfig
from common.runs import SampleConfig
from common.sample_plan import plan_videos
from common.trained_size import is_near, nearest
from common.video import write_video
from tests.tiny import tiny_transformer_config, tiny_vae_config

ROOT = Path(__file__).resolve().parents[2]


def picture(height=40, width=60):
    """Smooth, so that resizing and compression keep it: red grows downwards, green to the right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(20, 230, height)[:, None]
    image[..., 1] = np.linspace(20, 230, width)
    image[..., 2] = 60
    return image


def save(path, array=None, **options):
    Image.fromarray(picture() if array is None else array).save(path, **options)
    return str(path)


def given(num_prompts=1, fps=None, **keys):
    return read_given(GivenConfig(**{"num_frames": 9, "height": 40, "width": 60, **keys}), num_prompts, fps)


def clip(path, num_frames=12, height=40, width=60):
    frames = np.stack([np.full((height, width, 3), 20 * t, np.uint8) for t in range(num_frames)])
    write_video(path, frames, 8)
    return str(path)


def grey_levels(entry):
    return [round(float(frame.mean()) / 20) for frame in entry.frames_NHWC]


def test_nothing_given():
    (entry,) = given()
    assert entry.indices == ()
    assert entry.size == (40, 60)
    assert entry.frames_NHWC.shape == (0, 40, 60, 3)


def test_one_picture_is_the_first_frame_and_two_the_ends(tmp_path):
    one, two = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    assert given(image=one)[0].indices == (0,)
    assert given(image=f"{one}, {two}")[0].indices == (0, 8)


def test_pictures_at_any_frames(tmp_path):
    names = ",".join(save(tmp_path / f"{i}.png") for i in range(3))
    assert given(image=names, at=[4, -1, 0])[0].indices == (4, 8, 0)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (None, "wanted a frame for each"),
        ([0, 1], "wanted a frame for each"),
        ([0, 4, 9], "got frame 9"),
        ([0, 8, -1], "each at most once"),
    ],
)
def test_frames_of_pictures_are_checked(tmp_path, at, message):
    names = ",".join(save(tmp_path / f"{i}.png") for i in range(3))
    with pytest.raises(ValueError, match=message):
        given(image=names, at=at)


def test_a_comma_in_a_file_name(tmp_path):
    assert given(image=save(tmp_path / "red, green.png"))[0].indices == (0,)


def test_pictures_of_each_prompt_from_a_file(tmp_path):
    one, two = save(tmp_path / "a.png"), save(tmp_path / "b.png", picture()[::-1])
    (tmp_path / "list.txt").write_text(f"{one}\n-\n\n{one},{two}\n")
    entries = given(num_prompts=3, image=str(tmp_path / "list.txt"))
    assert [entry.indices for entry in entries] == [(0,), (), (0, 8)]
    assert len(given(num_prompts=3, image=one)) == 3  # one for all
    with pytest.raises(ValueError, match="3 entries for 2 prompts"):
        given(num_prompts=2, image=str(tmp_path / "list.txt"))


def test_frames_of_a_clip(tmp_path):
    path = clip(tmp_path / "clip.mp4")
    assert given(video=path)[0].indices == (0,)
    entry = given(video=path, keep="0:3,-1")[0]
    assert entry.indices == (0, 1, 2, 8)
    assert grey_levels(entry) == [0, 1, 2, 8]
    entry = given(video=path, start=-4, keep="0:4")[0]
    assert entry.indices == (0, 1, 2, 3)
    assert grey_levels(entry) == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keep": "0:9", "num_frames": 17, "start": 4}, "got 12 frames, wanted frames 4 to 12"),
        ({"start": -20}, "wanted frames -8 to"),
        ({"keep": "9"}, "got frame 9"),
        ({"keep": "first"}, "wanted frames such as"),
        ({"keep": "1:2:3"}, "wanted frames such as"),
        ({"keep": "5:5"}, "names none"),
        ({"keep": "0:10"}, "got 0:10, wanted a part of the video's 9"),
        ({"at": [0]}, "at: it goes with image"),
        ({"keep": "0:2,1"}, "at most once"),
    ],
)
def test_frames_of_a_clip_are_checked(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        given(video=clip(tmp_path / "clip.mp4"), **keys)


def test_all_frames():
    assert parse_keep(":", 5) == [0, 1, 2, 3, 4]
    assert parse_keep("-2:", 5) == [3, 4]


@pytest.mark.parametrize("suffix", ["gif", "avi"])
def test_gif_and_avi_are_clips(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    frames = [np.full((40, 60, 3), 20 * t, np.uint8) for t in range(6)]
    if suffix == "gif":
        first, *rest = [Image.fromarray(frame) for frame in frames]
        first.save(path, save_all=True, append_images=rest, duration=100)
    else:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (60, 40))
        for frame in frames:
            writer.write(frame)
        writer.release()
    assert grey_levels(given(video=str(path), keep="0:4")[0]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"got a moving picture.*video="):
        given(image=str(path))


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_what_a_file_holds_decides_whether_it_is_a_clip(tmp_path, suffix):
    shades = [Image.fromarray(np.full((40, 60, 3), 20 * t, np.uint8)) for t in range(6)]
    moving, still = str(tmp_path / f"moving.{suffix}"), str(tmp_path / f"still.{suffix}")
    shades[0].save(moving, save_all=True, append_images=shades[1:], duration=100, lossless=True)
    shades[3].save(still, lossless=True)
    assert grey_levels(given(video=moving, keep="0:4")[0]) == [0, 1, 2, 3]
    assert grey_levels(given(video=moving, start=-2, keep="0:2")[0]) == [4, 5]
    assert grey_levels(given(image=still)[0]) == [3]
    with pytest.raises(
        ValueError, match=r"image .*got a moving picture, wanted a still one; give it as video="
    ):
        given(image=moving)
    with pytest.raises(
        ValueError, match=r"video .*got a still picture, wanted a moving one; give it as image="
    ):
        given(video=still)


def test_suffixes_do_not_decide(tmp_path):
    renamed = Path(clip(tmp_path / "clip.mp4")).rename(tmp_path / "clip.png")
    with pytest.raises(ValueError, match=r"got a moving picture, wanted a still one; give it as video="):
        given(image=str(renamed))
    assert grey_levels(given(video=str(renamed), keep="0:2")[0]) == [0, 1]
    assert given(image=save(tmp_path / "still.gif", picture()[..., 0]))[0].indices == (0,)


def test_transparent_pixels_lie_on_white(tmp_path):
    rgba = np.dstack([picture(), np.zeros((40, 60), np.uint8)])
    assert (given(image=save(tmp_path / "a.png", rgba))[0].frames_NHWC[0] == 255).all()


def test_exif_turns_a_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to see it upright
    path = save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = given(image=path, height=60, width=40)[0].frames_NHWC[0].astype(int)
    assert found.shape == (60, 40, 3)
    assert np.abs(found - np.rot90(picture(), -1)).max() < 12


def test_grey_and_deep_pictures(tmp_path):
    grey = picture()[..., 1]
    found = given(image=save(tmp_path / "a.png", grey))[0].frames_NHWC[0]
    assert (found == grey[..., None]).all()
    cv2.imwrite(str(tmp_path / "b.png"), picture()[..., ::-1].astype(np.uint16) * 257)
    assert (given(image=str(tmp_path / "b.png"))[0].frames_NHWC[0] == picture()).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image": "nowhere.png"}, "no such file"),
        ({"video": "nowhere.mp4"}, "no such file"),
        ({"image": "nowhere.txt"}, "a line for each prompt"),
        ({"image": "a.png", "video": "b.mp4"}, "got both"),
        ({"at": [0]}, "at: it goes with image"),
        ({"max_hxw": 4096}, "max_hxw: it goes with image or video"),
        ({"keep": "0:2"}, "keep: it goes with video"),
        ({"image": "a.png", "start": 3}, "start: it goes with video"),
        ({"image": ["a.png", "b.png"]}, "commas join pictures of one prompt"),
    ],
)
def test_what_cannot_be_given(keys, message):
    with pytest.raises(ValueError, match=message):
        given(**keys)


def test_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ValueError, match="do not decode"):
        given(image=str(tmp_path / "a.png"))


def test_pictures_of_different_sizes_fill_a_fixed_one(tmp_path):
    sizes = [(40, 60), (90, 90), (20, 200)]
    names = [save(tmp_path / f"{i}.png", picture(*size)) for i, size in enumerate(sizes)]
    (entry,) = given(image=",".join(names), at=[0, 4, 8], height=32, width=48)
    assert entry.size == (32, 48)
    assert entry.frames_NHWC.shape == (3, 32, 48, 3)
    assert entry.frames_NHWC.dtype == np.uint8


def test_the_size_of_pictures_under_a_largest_area(tmp_path):
    names = [save(tmp_path / f"{i}.png", picture(*size)) for i, size in enumerate([(140, 300), (160, 290)])]
    (entry,) = given(image=",".join(names), max_hxw=128 * 256)
    assert entry.size == (96, 256)
    assert entry.frames_NHWC.shape == (2, 96, 256, 3)
    with pytest.raises(ValueError, match=r"have 30x300 pixels in common.*wanted 32 or more"):
        given(image=save(tmp_path / "s.png", picture(30, 300)), max_hxw=128 * 256)


def test_a_clip_of_another_rate_is_told_of(tmp_path):
    path = clip(tmp_path / "clip.mp4")  # 8 frames a second
    assert given(video=path, keep="0:4", fps=8)[0].warnings == ()
    assert "got 8 frames a second" in given(video=path, keep="0:4", fps=16)[0].warnings[0]


MODELS = {"transformer": {"path": "t"}, "vae": {"path": "v"}, "text": {"kind": "minilm"}, "prompt": "a"}
TRAINED = {"sample_size_t": 5, "sample_size_h": 12, "sample_size_w": 12}


def plan(image_model=True, trained=5, **keys):
    config = SampleConfig(**{**MODELS, "num_frames": 17, "height": 96, "width": 96, **keys})
    model = {**TRAINED, "sample_size_t": trained, "vae_scale_factor_t": 4 if image_model else None}
    transformer = tiny_transformer_config(**model)
    return plan_videos(config, 1, tiny_vae_config(), transformer)


def test_chunks_that_a_vae_cannot_take_are_refused_before_anything_is_made(monkeypatch):
    plan(vae_chunk_frames=2)
    monkeypatch.setitem(globals(), "tiny_vae_config", lambda: VAEConfig(latent_dim=4, norm_type="groupnorm"))
    assert plan(vae_chunk_frames=4).warnings == []  # one chunk is the whole
    with pytest.raises(ValueError, match=r"GroupNorm's statistics span time.*chunk_frames to 0"):
        plan(vae_chunk_frames=2)


def test_a_plan_within_training_has_no_warning(tmp_path):
    found = plan(image=save(tmp_path / "a.png"))
    assert found.warnings == []
    assert len(found.windows) == 1
    assert found.sizes == [(96, 96)]
    assert found.given[0].frames_NHWC.shape == (1, 96, 96, 3)
    assert found.given[0].indices == (0,)


def test_a_long_video_is_made_in_windows_of_the_trained_length():
    found = plan(num_frames=50)
    assert {window.num_frames for window in found.windows} == {17}
    assert found.windows[1].num_known == 5
    assert found.windows[-1].stop == 50
    assert found.warnings == []
    assert plan(num_frames=70, window_frames=33, overlap_frames=9).windows[1].num_known == 9


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_frames": 33, "image_model": False}, "nearest good number is 17; an image-to-video"),
        ({"window_frames": 33, "num_frames": 33}, "up to 17"),
        ({"num_frames": 5, "trained": 25}, "nearest good number is 25, or 1"),
        ({"height": 224, "width": 224}, "shapes of about 96x96; the nearest good size is 128x128"),
        ({"height": 32, "width": 64}, "nearest good size is 64x"),
        ({"height": 32, "width": 256}, "nearest good size is 64x128"),
    ],
)
def test_what_is_far_from_training_is_told(keys, message):
    (warning,) = plan(**keys).warnings
    assert message in warning


@pytest.mark.parametrize("trained", [(96, 96), (352, 640), (640, 640), (96, 352), (320, 320)])
@pytest.mark.parametrize("wanted", [(32, 640), (640, 64), (1024, 1024), (32, 32), (64, 1024)])
def test_the_nearest_good_size_is_good(trained, wanted):
    size = nearest(*wanted, trained)
    assert is_near(*size, trained)
    assert size[0] % 32 == size[1] % 32 == 0
    assert nearest(*size, trained) == size


def test_presets_are_near_what_their_models_were_trained_on():
    """The released models' default is 80x80 cells."""
    for path in sorted((ROOT / "configs").glob("sample_released*.yaml")):
        config = load(SampleConfig, path)
        released = TransformerConfig(vae_scale_factor_t=4 if "i2v" in path.stem else None)
        vae = VAEConfig(norm_type="layernorm", latent_dim=8)
        assert plan_videos(config, 1, vae, released).warnings == [], path.stem
    assert is_near(480, 480, (640, 640))  # about the 236544 pixels of max_hxw


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"image_model": False, "window_frames": 9}, "window_frames: a text-to-video transformer"),
        ({"window_frames": 12, "num_frames": 40}, "window_frames: got 12, wanted a multiple of 4 plus 1"),
        ({"window_frames": 1, "num_frames": 5}, "window_frames: got 1"),
        ({"overlap_frames": 17, "num_frames": 40}, "overlap_frames: got 17"),
    ],
)
def test_windows_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        plan(**keys)


def test_a_text_to_video_model_takes_no_pictures(tmp_path):
    with pytest.raises(ValueError, match="got a text-to-video transformer"):
        plan(image_model=False, image=save(tmp_path / "a.png"))


def test_a_size_that_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="num_frames: got 16"):
        plan(num_frames=16)
    with pytest.raises(ValueError, match="height"):
        plan(height=100)
