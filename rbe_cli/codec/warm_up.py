"""Compile every kernel, with the types it is used with, before the work begins."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rbe_cli.codec import lossless, trellis_codec
from rbe_cli.codec.analysis import Analysis, analyse
from rbe_cli.codec.noise_shaping import Shaping
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.tensor_codec import open_tensor
from rbe_cli.codec.transform import Blockwise
from rbe_cli.kernels.products import add_product

_NOISE = np.arange(4096, dtype=np.uint8) % 7


def compile_all() -> None:
    """Run every kernel once on next to nothing, by way of the stages that call them."""
    analysis = compile_analysis()
    with ThreadPoolExecutor(1) as pool:
        chunks = trellis_codec.Encoding(analysis, 0.1, 4, pool).result().chunks
    decoder, grid = open_tensor(chunks[0], (analysis.matrix.rows, analysis.matrix.columns))
    decoder.decode(chunks[1], grid[0])
    lossless.decode_chunk(next(lossless.encode(_NOISE, "U8")), 0, "U8", _NOISE.shape)


def compile_analysis() -> Analysis:
    """The same of those alone that a look at weights needs. Returns what it found."""
    w = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    analysis = analyse(Matrix.of(w), Shaping(8, 8, geometric=True))
    assert analysis is not None
    analysis.expected_bytes(0.1)
    analysis.expected_error(0.1)
    Blockwise("dct", 8, 0, 8).forward(w)
    add_product(w, w, np.float32(1), np.zeros_like(w))
    next(lossless.encode(_NOISE, "U8"))
    return analysis
