"""How strong each input channel of each weight is, and how inputs go together, asked by tensor name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import dtypes, elements
from rbe_cli.checkpoint.reader import Shard
from rbe_cli.errors import UsageError

#: After the name of a tensor, the name of its inputs' second moments.
MOMENTS = ".moments"
#: How far second moments may be from symmetric, in parts of the largest.
_ASYMMETRY = 1e-4
#: Rows of them that are looked at at once.
_ROWS = 256
_LARGEST = float(np.finfo(np.float32).max)
#: What a tensor is called in a file, and which of its axes the inputs run along; None if the file tells.
Alias = tuple[str, int | None]


@dataclass(frozen=True)
class MeanSquares:
    """What a file has of one weight's inputs, read when it is asked for.

    Attributes
    ----------
    size : int
        Number of inputs.
    read : callable
        Gives float64[n], unchecked.
    """

    size: int
    read: Callable[[], NDArray[np.float64]]


class Importance:
    """What a calibration knows about the inputs of a model's weights.

    Parameters
    ----------
    path : Path
        The file, for messages.
    mean_squares : dict of MeanSquares
        By the names of the file.
    axes : dict of int
        Axis of a tensor that its inputs run along, 0 or 1, where the file says so.
    alias : callable
        The name of a tensor in the file.
    shard, shared : Shard and dict of str
        Where second moments are, if there are any, and under whose name.
    """

    def __init__(
        self,
        path: Path,
        mean_squares: Mapping[str, MeanSquares],
        axes: Mapping[str, int],
        *,
        alias: Callable[[str], Alias] = lambda name: (name, None),
        shard: Shard | None = None,
        shared: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._mean_squares = mean_squares
        self._axes = axes
        self._alias = alias
        self._shard = shard
        self._moments = {info.name: info for info in shard.tensors} if shard else {}
        self._shared = shared or {}

    @property
    def largest(self) -> int:
        """Bytes of the largest second moments, as stored; 0 if there are none."""
        return max((info.nbytes for info in self._moments.values()), default=0)

    @property
    def names(self) -> list[str]:
        """What the file has, by its own names."""
        return sorted(self._mean_squares)

    def knows(self, name: str) -> bool:
        """Whether the file has something about the inputs of a weight of this name."""
        return self._alias(name)[0] in self._mean_squares

    def mean_square(self, name: str, shape: tuple[int, ...]) -> tuple[int, NDArray[np.float64]] | None:
        """(axis, float64[n]): mean square of each input of a weight of rows x columns, and their axis in it.

        It is read from the file once it is known to fit. None if the file has nothing about it, or that all its inputs
        are zero. Raises UsageError, naming the tensor, if it does not fit or holds what no mean squares can.
        """
        key, axis = self._alias(name)
        found = self._mean_squares.get(key)
        if found is None:
            return None
        axis = self._axis(name, shape, found.size, self._axes.get(key, axis))
        values = found.read()
        # Up to here they can be added up.
        if not ((values >= 0) & (values <= _LARGEST)).all():
            raise UsageError(
                f"{self.path}: {key!r} holds NaN, a number beyond float32, or one below 0, which no mean square is"
            )
        return (axis, values) if values.any() else None

    def has_moments(self, name: str) -> bool:
        """Whether the file has second moments of a weight's inputs."""
        key, _ = self._alias(name)
        return self._shared.get(key, key) + MOMENTS in self._moments

    def moments(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """float32[n, n]: the mean of x x^T over the inputs x of a weight of rows x columns.

        It is read from the file each time, so that only one is in memory. Raises UsageError, naming the tensor, if
        there is none, it does not fit or holds what no second moments can.
        """
        key, axis = self._alias(name)
        info = self._moments.get(self._shared.get(key, key) + MOMENTS)
        if info is None or self._shard is None:
            raise UsageError(f"{self.path}: has no second moments of the inputs of {name!r}")
        if len(info.shape) != 2 or info.shape[0] != info.shape[1] or info.dtype not in dtypes.FLOATS:
            raise UsageError(f"{self.path}: {info.name!r} must be a square matrix of a floating type")
        self._axis(name, shape, info.shape[0], self._axes.get(key, axis))
        matrix = elements.to_float32(self._shard.raw(info)[:], info.dtype).reshape(info.shape)
        power = matrix.diagonal()
        tolerance = _ASYMMETRY * power.max(initial=0)
        symmetric = all(
            np.isfinite(matrix[rows]).all() and abs(matrix[rows] - matrix[:, rows].T).max(initial=0) <= tolerance
            for rows in (slice(top, top + _ROWS) for top in range(0, len(matrix), _ROWS))
        )
        if not symmetric or power.min(initial=0) < 0:
            raise UsageError(f"{self.path}: {info.name!r} holds NaN, infinity, or is not a mean of x x^T")
        return matrix

    def _axis(self, name: str, shape: tuple[int, ...], inputs: int, axis: int | None) -> int:
        """The axis of `inputs` elements, the one the file says if it does."""
        size = "x".join(map(str, shape))
        if len(shape) != 2:
            raise UsageError(f"{self.path}: {name!r} is {size}; importance is for matrices")
        fitting = [i for i in (0, 1) if shape[i] == inputs and axis in (None, i)]
        if not fitting:
            where = "" if axis is None else f" along axis {axis}"
            raise UsageError(f"{self.path}: {name!r} has {inputs} input channels there, but is {size}{where}")
        if len(fitting) > 1:
            raise UsageError(
                f"{self.path}: {name!r} is {size}; the metadata's input_axis must say which axis is the input"
            )
        return fitting[0]
