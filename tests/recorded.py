"""Cases recorded from the reference, for tests that compare with one of them."""

import pytest

from tools.parity.goldens import Case, find_folder, read_case, select


def recorded(name: str) -> Case:
    """One case; the test is skipped where the goldens at hand do not have it."""
    folder = find_folder()
    if folder is None or name not in select(folder):
        pytest.skip(f"the recorded case {name} is not in this checkout")
    return read_case(folder, name)
