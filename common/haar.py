"""Haar filters as WF-VAE has them (arXiv:2411.17459, section 3.1)."""

import numpy as np

# A rounded 1/sqrt(8): the released weights expect exactly this, so a round trip multiplies by 1.00026.
HAAR_3D = 0.3536
HAAR_2D = 0.5


def haar_filters(dims: int) -> list[np.ndarray]:
    """The 2**dims filters (1, 1, 2, ..., 2), low before high, the last dim fastest."""
    low, high = np.array([1.0, 1.0]), np.array([1.0, -1.0])
    filters = [np.ones(())]
    for _ in range(dims):
        filters = [np.multiply.outer(f, g) for f in filters for g in (low, high)]
    value = HAAR_3D if dims == 3 else HAAR_2D
    return [(value * f)[None, None].astype(np.float32) for f in filters]
