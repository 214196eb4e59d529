"""TensorBoard's event files, written without TensorBoard or a framework.

A file is a sequence of records: length, its checksum, an `Event` protocol buffer, its checksum (TensorFlow's
TFRecord; the checksum is CRC-32C, RFC 3720 appendix B, masked). Only scalars, pictures and videos are
written.
"""

import struct
import time
from pathlib import Path

import cv2
import numpy as np

from common.video import animated_png

POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


class EventFile:
    """One new event file in `folder`. It supersedes what older files there say of `first_step` and later."""

    def __init__(self, folder: str | Path, first_step: int = 0) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns():020d}"
        self._file = open(self.path, "xb")  # noqa: SIM115 it lives as long as the run
        self._write(_bytes(3, b"brain.Event:2"))
        if first_step:
            self._write(_integer(2, first_step) + _bytes(7, _integer(1, 1)))  # session_log: START

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._summary(step, _bytes(1, tag.encode()) + _float(2, value))

    def picture(self, tag: str, image_HWC: np.ndarray, step: int) -> None:
        """A uint8 RGB picture."""
        _, png = cv2.imencode(".png", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR))
        self._image(tag, image_HWC.shape, png.tobytes(), step)

    def video(self, tag: str, frames_THWC: np.ndarray, fps: float, step: int) -> None:
        """uint8 RGB frames, as a PNG that moves: TensorBoard hands it to the browser, which plays it."""
        self._image(tag, frames_THWC.shape[1:], animated_png(frames_THWC, fps), step)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _image(self, tag: str, size_HWC: tuple, png: bytes, step: int) -> None:
        H, W, C = size_HWC
        image = _integer(1, H) + _integer(2, W) + _integer(3, C) + _bytes(4, png)
        self._summary(step, _bytes(1, tag.encode()) + _bytes(4, image))

    def _summary(self, step: int, value: bytes) -> None:
        self._write(_integer(2, step) + _bytes(5, _bytes(1, value)))

    def _write(self, event: bytes) -> None:
        event = _double(1, time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
    return _key(field, VARINT) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _key(field, FIXED64) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _key(field, FIXED32) + np.float32(value).tobytes()


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, BYTES) + _varint(len(value)) + value


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [c >> 1 ^ (POLYNOMIAL if c & 1 else 0) for c in table]
    return table


TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
