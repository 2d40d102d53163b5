"""Where a compressed matrix comes from: a tensor of a folder, or an array that is compressed here and now."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec import tensor_codec
from rbe_cli.codec.choice.wish import Wish, reference_error
from rbe_cli.codec.residual import trellis_codec
from rbe_cli.codec.residual.noise_shaping import PLAIN
from rbe_cli.codec.residual.rate_control import MAX_PASSES, TOLERANCE, SizeSearch
from rbe_cli.codec.residual.trellis_codec import Encoded
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.low_rank_codec import MOST_COMPONENTS
from rbe_cli.codec.tensor_codec import Choice, Decoder
from rbe_cli.container.layer_file import EncodedTensor, TensorRecord
from rbe_cli.errors import UsageError

#: Numbers are coded no finer than in so many steps, however many bits there are.
_MOST_STEPS = trellis_codec.MAX_INDEX >> 2
#: Bytes of a layer file's table for each chunk.
_TABLE = 8


class StoredMatrix(Protocol):
    """A lossily coded matrix. `rbe_cli.container.folder.StoredTensor` is one.

    Attributes
    ----------
    record : TensorRecord
    where : str
        For messages.
    """

    @property
    def record(self) -> TensorRecord: ...  # noqa: D102
    @property
    def where(self) -> str: ...  # noqa: D102

    def decoder(self) -> Decoder:
        """What turns its streams into weights."""

    def stream(self, index: int) -> bytes:
        """What the decoder takes for a tile."""


class EncodedMatrix:
    """A compressed array in memory: the chunks a layer file would hold.

    Attributes
    ----------
    tensor : EncodedTensor
        As it would be written.
    squared_error : float
        Sum over the weights.
    """

    def __init__(self, tensor: EncodedTensor, squared_error: float) -> None:
        self.tensor = tensor
        self.squared_error = squared_error
        self.record = TensorRecord(tensor.name, tensor.dtype, tensor.shape, tensor.codec, 0, len(tensor.chunks))
        self.where = f"tensor {tensor.name!r}"

    @property
    def nbytes(self) -> int:
        """Bytes of a layer file that are there for it: its chunks, their table and its entry in the header."""
        return self.tensor.size()

    def decoder(self) -> Decoder:
        """What turns its streams into weights."""
        return tensor_codec.open_tensor(self.tensor.chunks[0], self.record.shape, self.record.codec)

    def decode(self) -> NDArray[np.float32]:
        """All weights, float32[rows, columns]."""
        decoder = self.decoder()
        out = np.empty(self.record.shape, np.float32)
        for i, tile in enumerate(decoder.grid):
            out[tile.top : tile.bottom, tile.left : tile.right] = decoder.decode(self.stream(i), tile)
        return out

    def stream(self, index: int) -> bytes:
        """What the decoder takes for a tile; nothing where a tensor is all in its first chunk."""
        return b"" if self.record.chunks == 1 else self.tensor.chunks[1 + index]


def compress_array(
    values: NDArray[np.float32],
    *,
    bits: float | None = None,
    ratio: float | None = None,
    structure_only: bool = False,
    transform: str = "auto",
    block: int = 128,
    k: int = 5,
    threshold: float = 0.01,
    rank: int = MOST_COMPONENTS,
    states: int = 64,
    threads: int = 1,
    name: str = "weight",
) -> EncodedMatrix:
    """Compress float32[rows, columns] for least squared error at a size, which is not exceeded.

    Parameters
    ----------
    bits, ratio : float
        One of the two: bits per weight, or 32 over that.
    structure_only, transform, block, k, threshold
        As for `rbe compress`.
    rank : int
        Components a low-rank matrix has at most: fewer are faster, take less memory, and make more error.
    states : int
        Of the trellis, 4 to 256.
    threads : int
        The bytes do not depend on it.
    name : str
        Of the tensor.

    Raises
    ------
    UsageError
        A matrix that can only be kept exactly (all equal, not finite), or a size that is out of reach.

    Examples
    --------
    >>> w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    >>> compress_array(w, bits=4.0).nbytes <= w.size * 4 / 8
    True
    """
    if values.ndim != 2 or (bits is None) == (ratio is None):
        raise UsageError("a layer is compressed from a matrix, to so many bits or to a ratio")
    source = np.ascontiguousarray(values, np.float32)
    wanted = bits if bits is not None else 32 / ratio if ratio else 0.0
    matrix = Matrix(source.reshape(-1).view(np.uint8), "F32", *source.shape)
    error = reference_error(wanted, None)
    wish = Wish(transform, block, k, error, wanted, structure_only, threshold, rank)
    choice = tensor_codec.for_size(partial(tensor_codec.prepare, matrix, PLAIN), wish, wanted * source.size / 8)
    if choice is None:
        raise UsageError(f"{name}: holds one number only, or some that are not finite")

    def tensor(encoded: Encoded) -> EncodedTensor:
        return EncodedTensor(name, "F32", source.shape, choice.codec, encoded.chunks)

    overhead = tensor(Encoded([], 0.0, 0)).size() + 64
    with ThreadPoolExecutor(threads) as pool:
        encoded = _meet(choice, wanted * source.size / 8 - overhead, states, pool)
    if encoded is None:
        raise UsageError(f"{name}: cannot be as small as {wanted:.4g} bits per weight")
    return EncodedMatrix(tensor(encoded), encoded.squared_error)


def _meet(choice: Choice, size: float, states: int, pool: Executor) -> Encoded | None:
    """Encode until the chunks take nearly so many bytes and no more; None if that is out of reach."""
    analysis = choice.analysis
    finest = analysis.largest / _MOST_STEPS
    search = SizeSearch([analysis], size, 0.0, TOLERANCE)
    best: Encoded | None = None
    for _ in range(MAX_PASSES):
        result = tensor_codec.start(choice, max(search.multiplier * analysis.unit, finest), states, pool).result()
        taken = result.size + _TABLE * len(result.chunks)
        if taken <= size and (best is None or result.squared_error < best.squared_error):
            best = result
        if search.found(taken) or not search.measured(taken, taken):
            break
        # Finer than the finest gives the same again.
        if best is result and search.multiplier * analysis.unit < finest:
            break
    return best
