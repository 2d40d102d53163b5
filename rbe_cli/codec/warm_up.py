"""Compile the kernels, with the types they are used with, before the work begins: all, or what a command needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec import lossless
from rbe_cli.codec.residual import trellis_codec
from rbe_cli.codec.residual.analysis import Analysis, analyse
from rbe_cli.codec.residual.noise_shaping import Inputs, Shaping
from rbe_cli.codec.side_info import decode_integers
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.sparse_analysis import SparseAnalysis
from rbe_cli.codec.structure.sparse_form import sparse_form
from rbe_cli.codec.structure.transform import Blockwise
from rbe_cli.codec.tensor_codec import open_tensor
from rbe_cli.codec.workspace import Inline
from rbe_cli.kernels.products import add_product
from rbe_cli.kernels.rans import LANES

#: The two chunks that `compile_all` codes, a matrix of so many rows and columns: a decoder needs no encoder then.
SHAPE = (8, 8)
CHUNKS = tuple(
    bytes.fromhex(chunk)
    for chunk in (
        "000000020008080023000000cdcccc3d080000000000000008000000080000002021163fbb24aa3d020000000200000003000300",
        "80206c168e90981c8e90981c8e90981c66d1b91466d1b9142f01e3242f01e32489d787e887e887e80eb90eb9581b581b",
    )
)
#: So many bytes, 0 and 1 in turns, kept exactly.
BYTES = 64
EXACT_CHUNK = bytes.fromhex(
    "020d002000000000bffffbdf95fffffda196bff80000000100f807010000000100f807010000000100f807010000000100f80701"
)
#: The numbers from 0 on, coded by their differences.
COUNTING = bytes.fromhex("014c9a23f1a4a9")


def compile_all() -> None:
    """Run every kernel once on next to nothing, by way of the stages that call them."""
    trellis_codec.Encoding(compile_analysis(), 0.1, 4, Inline()).result()
    compile_decoding()


def compile_structure() -> None:
    """The same, and what is coded without a residual."""
    compile_all()
    matrix = Matrix.of(_ramp(SHAPE))
    form = sparse_form(matrix, "dct", 8, 0)
    SparseAnalysis(matrix, form, 1.0, 0.0).encode(0.1)


def compile_feedback() -> None:
    """The same as of `compile_all`, and what feeds errors back."""
    compile_all()
    inputs = Inputs(0, np.ones(SHAPE[0]), moments=lambda: np.eye(SHAPE[0]))
    analysis = analyse(Matrix.of(_ramp((SHAPE[0], 2 * LANES))), Shaping(geometric=True, inputs=inputs))
    assert analysis is not None
    trellis_codec.Encoding(analysis, 0.1, 4, Inline()).result()


def compile_analysis() -> Analysis:
    """The same of those alone that a look at weights needs. Returns what it found."""
    w = _ramp(SHAPE)
    analysis = analyse(Matrix.of(w), Shaping(*SHAPE, geometric=True))
    assert analysis is not None
    analysis.expected_bytes(0.1)
    analysis.expected_error(0.1)
    Blockwise("dct", 8, 0, 8).forward(w)
    add_product(w, w, np.float32(1), np.zeros_like(w))
    next(lossless.encode(np.arange(4096, dtype=np.uint8) % 7, "U8"))
    return analysis


def compile_decoding() -> None:
    """The same of those alone that decoding needs."""
    decoder = open_tensor(CHUNKS[0], SHAPE)
    decoder.decode(CHUNKS[1], decoder.grid[0])
    lossless.decode_chunk(EXACT_CHUNK, 0, "U8", (BYTES,))
    decode_integers(COUNTING, 8)


def _ramp(shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.linspace(-1, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)
