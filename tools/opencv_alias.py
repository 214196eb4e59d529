"""Write the empty wheel that lets mindone, which asks for opencv-python, live with opencv-python-headless.

    python -m tools.opencv_alias assets/wheels

Two builds of OpenCV share the folder cv2/, the later install wins, and pip cannot leave a dependency out.
"""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

HEADLESS = "4.11.0.86"  # the same pin as in requirements-*.txt
METADATA = f"""\
Metadata-Version: 2.1
Name: opencv-python
Version: {HEADLESS}+headless
Summary: Empty. Says that opencv-python-headless provides cv2; the full build needs libGL
Requires-Dist: opencv-python-headless=={HEADLESS}
"""
WHEEL = """\
Wheel-Version: 1.0
Generator: tools/opencv_alias.py
Root-Is-Purelib: true
Tag: py3-none-any
"""


def write_alias(folder: Path) -> Path:
    """Write the wheel into `folder` and return its path; the same bytes every time."""
    stem = f"opencv_python-{HEADLESS}+headless"
    files = {f"{stem}.dist-info/METADATA": METADATA, f"{stem}.dist-info/WHEEL": WHEEL}
    record = f"{stem}.dist-info/RECORD"
    files[record] = "".join(_record_line(name, text) for name, text in files.items()) + f"{record},,\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)  # ZipInfo's default date is 1980
    return path


def _record_line(name: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(text)}\n"


if __name__ == "__main__":
    print(write_alias(Path(sys.argv[1])))
