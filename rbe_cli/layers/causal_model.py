"""What a language model must do to be measured and to write text, whatever runs it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


class Continuation(Protocol):
    """One text that grows, its keys and values kept."""

    def feed(self, tokens: Tokens) -> NDArray[np.float32]:
        """Read int64[n] more tokens, n > 0; gives the logits of the one after them, float32[vocabulary].

        Raises RBEError when there is no room for them.
        """


class CausalModel(Protocol):
    """Tokens in, logits of the next token out."""

    @property
    def context(self) -> int:
        """Positions at most."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens there are."""

    @property
    def nbytes(self) -> int:
        """Bytes held in memory now: weights, compressed or not, and decoded tiles."""

    def logits(self, tokens: Tokens, first: int = 0) -> NDArray[np.float32]:
        """int64[batch, positions] -> float32[batch, positions - first, vocabulary], of positions `first` on."""

    def continuation(self) -> Continuation:
        """An empty text to grow."""
