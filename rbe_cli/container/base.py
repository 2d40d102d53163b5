"""The base of an update: the model of whose tensors only what changed is stored.

A lossy tensor is the base's, in float32, plus what is coded; an exact one is the base's bytes, exclusive-or what is
coded. Either way its record has the fingerprint of the base's bytes: with others it would decode to something else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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
    """

    dtype: str
    shape: tuple[int, ...]
    raw: Bytes

    def fingerprint(self) -> str:
        """The first digits of the SHA-256 of its bytes."""
        digest = hashlib.sha256()
        for at in range(0, self.raw.size, _PIECE):
            digest.update(np.ascontiguousarray(self.raw[at : at + _PIECE]).data)
        return digest.hexdigest()[:FINGERPRINT]

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
