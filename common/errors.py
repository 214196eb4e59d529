"""What a user can cause, apart from what only a bug can: command lines turn the first into one line.

Readers turn their library's errors into these, with file and place. Command lines, and the counting of bad
samples, catch `InputError` and `OSError` only, so that a bug keeps its traceback.
"""


class InputError(ValueError):
    """A config, a file or a request is not what is wanted: the message says where, what it got, what was
    wanted, and what to do.
    """


class NotFiniteError(InputError):
    """Sampling gave values that are not finite: half precision overflowed, or the weights are damaged.

    Args:
        places: of the videos in their batch.
    """

    def __init__(self, message: str, places: tuple[int, ...]):
        super().__init__(message)
        self.places = places


class MediaError(InputError):
    """A video or picture cannot be read, or is not what it is said to be."""
