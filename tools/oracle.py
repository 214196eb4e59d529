"""How well the oracle reads generated clips, and what the clips look like.

python -m tools.oracle --clips 1000 --size 64 --frames 17     a table of accuracies and all confusions
python -m tools.oracle --sheet clips.png                      a contact sheet of clips with their captions
python -m tools.oracle --read video.mp4                       what the oracle sees in a video
"""

import argparse
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from common.data.drawing import render
from common.data.scenes import Scene, caption, draw_scene
from common.errors import InputError
from common.images import write_png
from common.noise import generator
from common.oracle import read_back
from common.video import read_video, write_video

ATTRIBUTES = ("colour", "shape", "motion", "all")
SHEET_CELL, SHEET_FRAMES, SHEET_COLUMNS = 96, 7, 2
LINE, LETTER = 15, 6.58  # height of a line of text and mean width of a letter, in pixels
Triple = tuple[str, str, str]
Harm = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.oracle", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet instead")
    parser.add_argument("--read", metavar="VIDEO", help="read a video instead")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        if args.sheet:
            write_png(args.sheet, sheet(args.seed))
        elif args.read:
            reading = read_back(read_video(args.read))
            print(*reading.triple, f"(shape ahead of the next by {reading.confidence:.2f})")
        else:
            print(report(args.clips, args.size, args.frames, args.seed))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def clip_of(seed: int, index: int, heldout: bool | None, num_things: int | None = 1) -> tuple[Scene, str]:
    """A scene and its caption, a pure function of the arguments."""
    rng = generator(seed, index)
    scene = draw_scene(rng, num_things=num_things, heldout=heldout)
    return scene, caption(scene, rng)


def report(num_clips: int, size: int, num_frames: int, seed: int) -> str:
    """Accuracy under each harm as a Markdown table, and all confusions; half the clips are held-out triples.

    The last row compares each reading with the truth of another clip: what guessing would score.
    """
    if min(num_clips, num_frames) < 2 or size < 16:
        raise InputError(f"got {num_clips} clips, {num_frames} frames, size {size}; wanted 2, 2, 16 or more")
    heldout = np.arange(num_clips) % 2 == 1
    scenes = [clip_of(seed, index, bool(part))[0] for index, part in enumerate(heldout)]
    truth = np.array([scene.things[0].triple for scene in scenes])
    rows = [heading(f"{num_clips} clips, {num_frames} x {size} x {size}")]
    confused = []
    for name, harm in HARMS.items():
        read = np.array([_read(scene, num_frames, size, harm, seed, i) for i, scene in enumerate(scenes)])
        rows.append(row(name, read, truth))
        if name == "as rendered":
            rows.append(row("as rendered, triples of training", read[~heldout], truth[~heldout]))
            rows.append(row("as rendered, held-out triples", read[heldout], truth[heldout]))
            shuffled = row("as rendered, truth shuffled", read, np.roll(truth, num_clips // 2 + 1, axis=0))
        confused.append(f"* {name}: {confusions(read, truth)}")
    times = _times(scenes[:30], num_frames, size)
    return "\n".join([*rows, shuffled, "", "Confusions:", *confused, "", times])


def _times(scenes: list[Scene], num_frames: int, size: int) -> str:
    """Processor time of one clip, the median over the scenes."""
    ticks = []
    for scene in scenes:
        start = time.process_time()
        frames_THWC = render(scene, num_frames, size, size)
        middle = time.process_time()
        read_back(frames_THWC)
        ticks.append((middle - start, time.process_time() - middle))
    drawing, reading = np.median(ticks, axis=0) * 1000
    return f"Processor time of a clip: render {drawing:.1f} ms, read back {reading:.1f} ms."


def _read(scene: Scene, num_frames: int, size: int, harm: Harm, seed: int, index: int) -> Triple:
    frames_THWC = render(scene, num_frames, size, size)
    return read_back(harm(frames_THWC, generator(seed + 1, index))).triple


def heading(corner: str) -> str:
    """The first two lines of a Markdown table of accuracies."""
    return f"| {corner} | {' | '.join(ATTRIBUTES)} |\n" + "|---" * (len(ATTRIBUTES) + 1) + "|"


def row(name: str, read: np.ndarray, truth: np.ndarray) -> str:
    """A line of that table."""
    return f"| {name} | " + " | ".join(f"{100 * share:.1f} %" for share in accuracy(read, truth)) + " |"


def accuracy(read: np.ndarray, truth: np.ndarray) -> list[float]:
    """For triples (clips, 3) the shares that were read right, in the order of ATTRIBUTES."""
    right = read == truth
    return [*right.mean(0).tolist(), float(right.all(1).mean())]


def confusions(read: np.ndarray, truth: np.ndarray) -> str:
    """What was read as what, the commonest first: "cross as square 5x, ring as ball 2x"; or "none"."""
    wrong = Counter((t, r) for t, r in zip(truth.ravel(), read.ravel()) if t != r)
    return ", ".join(f"{t} as {r} {count}x" for (t, r), count in wrong.most_common()) or "none"


def _noised(frames_THWC: np.ndarray, rng: np.random.Generator, sigma: float, noise: float) -> np.ndarray:
    sigma *= frames_THWC.shape[1] / 64
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames_THWC])
    return np.clip(blurred + rng.normal(0.5, noise, blurred.shape), 0, 255).astype(np.uint8)


def _jpeg(frames_THWC: np.ndarray, quality: int) -> np.ndarray:
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    codes = [cv2.imencode(".jpg", frame[..., ::-1], settings)[1] for frame in frames_THWC]
    return np.stack([cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1] for code in codes])


def _h264(frames_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, frames_THWC, fps=16)
        return read_video(path)


HARMS: dict[str, Harm] = {
    "as rendered": lambda frames, rng: frames,
    "blur 0.7 px, noise 4/255": lambda frames, rng: _noised(frames, rng, 0.7, 4),
    "blur 1.3 px, noise 10/255": lambda frames, rng: _noised(frames, rng, 1.3, 10),
    "JPEG of quality 75": lambda frames, rng: _jpeg(frames, 75),
    "JPEG of quality 50": lambda frames, rng: _jpeg(frames, 50),  # colour is all but lost in small things
    "H.264 as samples are written": _h264,
}


def sheet(seed: int, num_clips: int = 24) -> np.ndarray:
    """Clips as strips of frames under their captions, one picture (H, W, 3)."""
    clips = [clip_of(seed, index, heldout=None, num_things=None) for index in range(num_clips)]
    return in_columns(
        [strip(render(scene, SHEET_FRAMES, SHEET_CELL, SHEET_CELL), text) for scene, text in clips]
    )


def in_columns(strips: list[np.ndarray]) -> np.ndarray:
    """Strips of one size row by row in columns, one picture (H, W, 3); a place left over is white."""
    white = [np.full_like(strips[0], 255)] * (-len(strips) % SHEET_COLUMNS)
    columns = [np.concatenate([*strips, *white][column::SHEET_COLUMNS]) for column in range(SHEET_COLUMNS)]
    return np.concatenate(columns, axis=1)


def strip(frames_THWC: np.ndarray, text: str, num_lines: int = 2) -> np.ndarray:
    """Frames side by side under a text that fits into `num_lines` lines."""
    frames_THWC = frames_THWC.copy()
    frames_THWC[:, :, -2:] = 255  # a gap between frames
    pictures = np.concatenate(list(frames_THWC), axis=1)
    label = np.full((num_lines * LINE + 6, pictures.shape[1], 3), 255, np.uint8)
    columns = int(pictures.shape[1] / LETTER)
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, columns)]
    for line, words in enumerate(reversed(lines)):
        place = (4, LINE * (num_lines - line))
        cv2.putText(label, words, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (20, 20, 20), 1, cv2.LINE_AA)
    return np.concatenate([label, pictures])


if __name__ == "__main__":
    sys.exit(main())
