"""What a run tells: rows cut back, TensorBoard's format to the byte, and a curve to look at."""

import struct

import cv2
import numpy as np
import pytest

from common.images import read_image
from common.training import event_file
from common.training.curves import panel, plot_losses, running_mean, ticks
from common.training.event_file import EventFile
from common.training.log import RunLog, Validation, cut_rows
from common.video import animated_png, probe
from tools.curve import main

# Written by TensorBoard's own protocol buffers (tensorboardX 2.6.5): time 1.5, step 300, loss 0.25.
LOSS = "1b000000000000001a0d9e1309000000000000f83f10ac022a0d0a0b0a046c6f7373150000803e9908deed"
PICTURE = (
    "09000000000000f83f10ac022a120a100a0170220b0808100918032203504e47"  # an 8 x 9 picture of bytes "PNG"
)


def records(data):
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_events_are_tensorboards_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(event_file.time, "time", lambda: 1.5)
    monkeypatch.setattr(event_file.cv2, "imencode", lambda *_: (True, np.frombuffer(b"PNG", np.uint8)))
    events = EventFile(tmp_path)
    events.scalar("loss", 0.25, 300)
    events.picture("p", np.zeros((8, 9, 3), np.uint8), 300)
    events.close()
    data = events.path.read_bytes()
    assert bytes.fromhex(LOSS) in data
    assert list(records(data))[2].hex() == PICTURE


def test_the_checksum():
    crc = 0xE3069283  # RFC 3720: CRC-32C of "123456789"
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert event_file._masked_crc(b"123456789") == struct.pack("<I", masked)


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo', '{"step": 4}\n{"step": 5}\n'])
def test_rows_are_cut_back(tmp_path, torn):
    file = tmp_path / "losses.jsonl"
    rows = "".join(f'{{"step": {n}}}\n' for n in (1, 2, 3))
    file.write_text(rows + torn)
    assert cut_rows(file, 3) == ({"step": 3}, 24)
    assert file.read_text() == rows
    assert cut_rows(file, 1) == ({"step": 1}, 0)
    assert file.read_text() == '{"step": 1}\n'
    assert cut_rows(file, 0) == ({}, 0)
    assert file.read_text() == ""
    file.unlink()
    assert cut_rows(file, 3) == ({}, 0)
    assert file.read_text() == ""


def losses(tmp_path, count):
    rows = [f'{{"step": {n}, "loss": {100 / n}, "kl": {n % 7}}}\n' for n in range(1, count + 1)]
    (tmp_path / "losses.jsonl").write_text("".join(rows))
    return tmp_path / "losses.jsonl"


@pytest.mark.parametrize("count", [1, 2, 200])
def test_a_panel_for_every_scalar(tmp_path, count):
    png = tmp_path / "curve.png"
    plot_losses(losses(tmp_path, count), png)
    picture_HWC = read_image(png)
    assert picture_HWC.shape == (600, 960, 3)
    assert (picture_HWC != 255).any(-1).sum() > 1000
    main([str(tmp_path / "losses.jsonl"), str(png), "kl"])
    assert cv2.imread(str(png)).shape == (300, 960, 3)


def test_a_curve_goes_down_where_the_values_do():
    steps = np.arange(1.0, 101)
    image_HWC = panel("loss", steps, 2 - steps / 100, 1, 100)
    blue = (image_HWC[..., 2].astype(int) - image_HWC[..., 0]) > 80
    rows = [np.flatnonzero(blue[:, x]).mean() for x in (150, 500, 850)]
    assert rows == sorted(rows)


def test_a_scalar_nobody_logged_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no row has a number for lpips; there are loss, kl"):
        plot_losses(losses(tmp_path, 3), tmp_path / "x.png", ["lpips"])


def test_ticks_are_round():
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-3, 97, 5) == [0, 20, 40, 60, 80]


def test_the_running_mean_keeps_the_ends():
    assert running_mean(np.array([1.0, 2.0, 6.0]), 1).tolist() == [1.5, 3.0, 4.0]


def test_what_a_validation_shows_is_in_tensorboard_and_beside(tmp_path, capsys):
    rng = np.random.default_rng(0)
    frames_THWC = rng.integers(0, 255, (5, 16, 32, 3), np.uint8)
    log = RunLog(tmp_path, 0, 8, log_every=1)
    log.step(1, {"loss": 0.5}, seconds=2.0, waited=0.1)
    log.validation(1, Validation(0.25, {"loss": 0.25}, {"a": frames_THWC[0]}, {"b 1": frames_THWC}, 8.0))
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    found = b"".join(records(events.read_bytes()))
    for tag in (b"loss", b"time/step_s", b"time/data_s", b"validation/loss", b"validation/a"):
        assert tag in found, tag
    assert animated_png(frames_THWC, 8.0) in found
    assert (read_image(tmp_path / "pictures" / "step-00000001-a.png") == frames_THWC[0]).all()
    assert probe(tmp_path / "videos" / "step-00000001-b-1.mp4").fps == 8
    assert "step 1/8  2 s/step  0:00:14 left  loss 0.5" in capsys.readouterr().err
