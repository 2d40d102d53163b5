"""The base of an update: the model of whose tensors only what changed is stored.

A lossy tensor is the base's, in float32, plus what is coded; an exact one is the base's bytes, exclusive-or what is
coded. Either way its record has the fingerprint of the base's tensor: with another it would decode to something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rbe_cli.codec.source import Bytes, Matrix
from rbe_cli.container.fields import FINGERPRINT

#: Bytes that are read at once where a whole tensor passes by.
_PIECE = 1 << 22


@dataclass(frozen=True)
class BaseTensor:
    """One tensor of a base.

    Attributes
    ----------
    dtype : str
    shape : tuple of int
    raw : Bytes
        As stored in a checkpoint, or as decoded.
    chunks : callable or None
        Gives those that it is decoded from, if it is lossily coded: their decoding differs in the last bits from one
        machine to another.
    """

    dtype: str
    shape: tuple[int, ...]
    raw: Bytes
    chunks: Callable[[], Iterable[bytes]] | None = None

    @property
    def exact(self) -> bool:
        """Whether its bytes are the same on every machine."""
        return self.chunks is None

    @cached_property
    def fingerprint(self) -> str:
        """The first digits of the SHA-256 of its bytes, or of its chunks where the bytes are not exact."""
        digest = hashlib.sha256()
        for part in self._bytes() if self.chunks is None else self.chunks():
            digest.update(part)
        return digest.hexdigest()[:FINGERPRINT]

    def _bytes(self) -> Iterator[memoryview]:
        for at in range(0, self.raw.size, _PIECE):
            yield np.ascontiguousarray(self.raw[at : at + _PIECE]).data

    def matrix(self, rows: int, columns: int) -> Matrix:
        """As float32[rows, columns]."""
        return Matrix(self.raw, self.dtype, rows, columns)


class Base(Protocol):
    """A model by the names of its tensors.

    Attributes
    ----------
    name : str
        How the user called it.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def find(self, name: str) -> BaseTensor | None:
        """The tensor of a name, if there is one. Raises RBEError, CorruptFile."""


@dataclass(frozen=True)
class Changes:
    """The bytes of a tensor, exclusive-or those of its base: what is the same in both is 0."""

    raw: Bytes
    base: Bytes

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.raw.size

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        changed: NDArray[np.uint8] = self.raw[part] ^ self.base[part]
        return changed
