"""Files of training data that cannot be used: counted, named, and too many of them an error."""

from collections import Counter
from collections.abc import Hashable
from typing import NamedTuple

from common.errors import InputError

MIN_TRIED = 100  # over which the share of broken ones is first judged
MAX_TRIES = 20  # broken ones in a row before a sample is given up
MAX_NAMED = 10  # named in a message


class Defect(NamedTuple):
    """What is wrong with a file or clip, and what the reader said."""

    kind: str
    reason: str
    name: str  # of the file


class BrokenFiles:
    """Those that one rank met.

    Args:
        what: they are called in messages: "clips" or "files".
        number: of all that there are.
        max_share: of those tried; more are an error.
    """

    def __init__(self, what: str, number: int, max_share: float):
        self.what, self.number, self.max_share = what, number, max_share
        self.defects: dict[Hashable, Defect] = {}  # of those among `tried` that are broken
        self.tried: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self.defects)

    def check(self) -> None:
        """
        Raises:
            InputError: too large a share is broken; which, and why.
        """
        tried = max(len(self.tried), min(MIN_TRIED, self.number))
        if len(self) > max(1, self.max_share * tried):
            raise self.too_many(f"at most {self.max_share:.1%} (max_bad_share)")

    def too_many(self, allowed: str = f"fewer than {MAX_TRIES} in a row") -> InputError:
        """The error that says what was met and what would have been `allowed`."""
        reasons = list(dict.fromkeys(f"  {d.kind}: {d.reason}" for d in self.defects.values()))[:MAX_NAMED]
        return InputError(
            f"data: got {len(self)} broken of {len(self.tried)} {self.what} tried, wanted {allowed}; "
            "repair or remove them:\n" + "\n".join(reasons)
        )

    def summary(self) -> str:
        """How many of each kind, and the first of them."""
        kinds = []
        for kind, count in Counter(defect.kind for defect in self.defects.values()).items():
            names = list(dict.fromkeys(d.name for d in self.defects.values() if d.kind == kind))
            more = ", ..." if len(names) > MAX_NAMED else ""
            kinds.append(f"{count} {kind} ({', '.join(names[:MAX_NAMED])}{more})")
        return f"skipped: {', '.join(kinds) or 'none'}"
