"""A million short texts in a few hundred megabytes: compressed in blocks, read one at a time."""

import zlib
from array import array
from collections.abc import Sequence

BLOCK = 256  # records; unpacking one takes about a millisecond
UNIT, RECORD = "\x1f", "\x1e"  # ASCII's separators of parts and of records


class Texts:
    """Records of one or more strings by number. The separators of ASCII are taken out of them."""

    def __init__(self) -> None:
        self._packed = bytearray()  # one piece: thousands of blocks would leave holes between them
        self._ends = array("q", [0])
        self._open: list[str] = []

    def __len__(self) -> int:
        return (len(self._ends) - 1) * BLOCK + len(self._open)

    def append(self, parts: Sequence[str]) -> None:
        """One more record."""
        self._open.append(UNIT.join(part.replace(UNIT, " ").replace(RECORD, " ") for part in parts))
        if len(self._open) == BLOCK:
            packed = RECORD.join(self._open).encode("utf-8", "replace")  # JSON may hold half a character
            self._packed += zlib.compress(packed, 1)
            self._ends.append(len(self._packed))
            self._open.clear()

    def __getitem__(self, index: int) -> list[str]:
        number, place = divmod(index, BLOCK)
        if number == len(self._ends) - 1:
            return self._open[place].split(UNIT)
        with memoryview(self._packed) as packed:
            block = zlib.decompress(packed[self._ends[number] : self._ends[number + 1]])
        return block.decode().split(RECORD)[place].split(UNIT)
