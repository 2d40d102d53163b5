"""The weights the guide's model describes: smooth blocks and a few low frequencies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.basis import functions
from rbe_cli.codec.transform import dct_matrix


def structured_matrix(size: int, block: int = 128, coefficients: int = 16, seed: int = 0) -> NDArray[np.float32]:
    """RMS 1; every block a sum of the 8 functions with random weights and some random DCT coefficients among its
    lowest quarter of frequencies, float32[size, size]."""
    rng = np.random.default_rng(seed)
    basis, dct = functions(block, block), dct_matrix(block).astype(np.float64)
    low = block // 4
    w = np.zeros((size, size))
    for top in range(0, size, block):
        for left in range(0, size, block):
            spectrum = np.zeros((block, block))
            place = rng.choice(low * low, coefficients, replace=False)
            spectrum[place // low, place % low] = rng.standard_normal(coefficients) * block / 4
            smooth = (rng.standard_normal(8) @ basis).reshape(block, block)
            w[top : top + block, left : left + block] = smooth + dct.T @ spectrum @ dct
    return (w / np.sqrt(np.mean(w * w))).astype(np.float32)
