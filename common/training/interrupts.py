"""SIGTERM and SIGINT as a wish to stop, granted when the work at hand is done."""

import os
import signal
import sys
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Within the block a signal is only noted, in `received`; the same one again stops at once.

    Outside the main thread, where Python delivers no signals, it notes nothing. A forked child, should a
    library make one, leaves SIGINT to its parent and ends at SIGTERM.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process = os.getpid()
        self._before = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as a shell counts; SIGTERM's where another rank got the signal."""
        return 128 + (self.received or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.received is not None:
            sys.exit(128 + number)
        self.received = signal.Signals(number)
        print(
            f"{self.received.name}: finishing this step, then writing a checkpoint; again to stop at once",
            file=sys.stderr,
            flush=True,
        )
