"""What compression does to a language model: perplexity, KL divergence and top-1 agreement, each with its error.

Text is read in windows of the model's context that overlap by half: every token but the first few has at least half a
context before it, and each is scored once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.layers.causal_model import CausalModel, Tokens
from rbe_cli.operations.progress import Progress, Silent

#: Logits of a model that are in memory at once, and those that are turned to float64 at once.
_LOGITS = 1 << 24
_DOUBLES = 1 << 21


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens and its standard error.

    Attributes
    ----------
    value, error : float
        The error is NaN if there were too few windows to tell.
    """

    value: float
    error: float

    @classmethod
    def of_windows(cls, sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Estimate:
        """From the sum of a figure over each window's tokens, and their number, float64[windows] each.

        Tokens of a window are not independent of each other, so the error is that of the ratio of two sums over
        windows (Cochran, Sampling Techniques, section 6.3), not that of independent tokens.

        >>> Estimate.of_windows(np.array([2.0, 4.0]), np.array([2.0, 2.0]))
        Estimate(value=1.5, error=0.5)
        """
        total = float(counts.sum())
        value = float(sums.sum()) / total
        windows = len(sums)
        if windows < 2:
            return cls(value, math.nan)
        spread = float(np.square(sums - value * counts).sum()) * windows / (windows - 1)
        return cls(value, math.sqrt(spread) / total)

    def exponential(self) -> Estimate:
        """Of exp(value), to first order."""
        grown = math.exp(self.value) if self.value < 700 else math.inf
        return Estimate(grown, grown * self.error)

    def scaled(self, factor: float) -> Estimate:
        """Of factor x value."""
        return Estimate(self.value * factor, self.error * abs(factor))


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` - 1 are read; what follows each from `first` on is scored."""

    begin: int
    first: int
    end: int


def windows(tokens: int, context: int) -> list[Window]:
    """Cut a text so that each token but the first is scored once.

    >>> windows(10, 4)
    [Window(begin=0, first=0, end=4), Window(begin=2, first=4, end=6), Window(begin=4, first=6, end=8), \
Window(begin=5, first=8, end=9)]
    """
    cut: list[Window] = []
    scored, last = 0, tokens - 1
    while scored < last:
        end = min(scored + max(1, context // 2) if scored else context, last)
        cut.append(Window(max(0, end - context), scored, end))
        scored = end
    return cut


@dataclass(frozen=True)
class Quality:
    """A compressed model against its reference on the same text.

    Attributes
    ----------
    tokens, windows : int
        Tokens scored, and the windows they are in.
    reference_loss, loss : Estimate
        Mean negative log-likelihood in nats per token.
    loss_difference : Estimate
        loss - reference_loss, its error from the pairs: far smaller than that of either.
    kl : Estimate
        KL(reference || compressed) in nats per token.
    top1 : Estimate
        Part of the tokens for which both find the same token likeliest.
    """

    tokens: int
    windows: int
    reference_loss: Estimate
    loss: Estimate
    loss_difference: Estimate
    kl: Estimate
    top1: Estimate

    @classmethod
    def of_windows(cls, sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Quality:
        """From what `score` found."""
        estimates = [Estimate.of_windows(sums[:, i], counts) for i in range(sums.shape[1])]
        return cls(int(counts.sum()), len(counts), *estimates)

    @property
    def reference_perplexity(self) -> Estimate:
        """E to the loss."""
        return self.reference_loss.exponential()

    @property
    def perplexity(self) -> Estimate:
        """E to the loss."""
        return self.loss.exponential()

    @property
    def perplexity_ratio(self) -> Estimate:
        """Perplexity over the reference's."""
        return self.loss_difference.exponential()


def compare(
    reference: CausalModel,
    compressed: CausalModel,
    tokens: Tokens,
    *,
    context: int | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Measure `compressed` against `reference` on int64[n] tokens, n > 1.

    `context` is the window, by default the smaller of the models' contexts. Raises RBEError if the models do not
    belong together or the text does not to them.
    """
    return Quality.of_windows(*score(reference, compressed, tokens, context=context, progress=progress))


def score(
    reference: CausalModel,
    compressed: CausalModel,
    tokens: Tokens,
    *,
    context: int | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `compare` makes its estimates of: sums over the tokens of each window, and how many tokens those are.

    float64[windows, 5], of both losses, their difference, KL and agreements, and float64[windows]. Raises RBEError.
    """
    progress = progress or Silent()
    if reference.vocabulary != compressed.vocabulary:
        raise RBEError(
            f"the reference has {reference.vocabulary} tokens, the compressed model {compressed.vocabulary}: "
            "they are not the same model"
        )
    if tokens.size < 2:
        raise RBEError("the text has fewer than two tokens; give a longer one with --text")
    if int(tokens.min()) < 0 or int(tokens.max()) >= reference.vocabulary:
        raise RBEError(f"the text has token {int(tokens.max())}, the model only {reference.vocabulary} of them")
    longest = min(reference.context, compressed.context)
    cut = windows(tokens.size, min(context or longest, longest))
    progress.phase("scoring text", tokens.size - 1)
    rows: list[NDArray[np.float64]] = []
    for batch in _batches(cut, reference.vocabulary):
        read = np.stack([tokens[window.begin : window.end] for window in batch])
        first = batch[0].first - batch[0].begin
        targets = np.stack([tokens[window.first + 1 : window.end + 1] for window in batch])
        p, q = reference.logits(read, first), compressed.logits(read, first)
        rows += [_figures(p[i], q[i], targets[i]) for i in range(len(batch))]
        progress.advance(targets.size)
    return np.stack(rows), np.array([window.end - window.first for window in cut], np.float64)


@np.errstate(all="ignore")
def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """KL(p || q) in nats, summed over positions, of float32[positions, vocabulary] logits."""
    height = max(1, _DOUBLES // p.shape[1])
    total = 0.0
    for top in range(0, len(p), height):
        log_p, log_q = (_log_softmax(logits[top : top + height]) for logits in (p, q))
        total += _divergence(log_p, log_q)
    return total


def _divergence(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> float:
    return float(np.einsum("ij,ij->", np.exp(log_p), log_p - log_q))


def turned(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - cosine of two embeddings of each text, float32[texts, hidden] each: float64[texts]."""
    a, b = p.astype(np.float64), q.astype(np.float64)
    cosine: NDArray[np.float64] = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return 1 - cosine


def _batches(cut: list[Window], vocabulary: int) -> Iterator[list[Window]]:
    """Neighbouring windows of one shape, as many as their logits may take."""
    for shape, alike in groupby(cut, lambda window: (window.end - window.begin, window.end - window.first)):
        group = list(alike)
        size = max(1, min(8, _LOGITS // (shape[1] * vocabulary)))
        yield from (group[i : i + size] for i in range(0, len(group), size))


@np.errstate(all="ignore")
def _figures(p: NDArray[np.float32], q: NDArray[np.float32], targets: Tokens) -> NDArray[np.float64]:
    """Sums over the tokens of a window: losses of both, their difference, KL, agreements. float64[5].

    p, q : float32[positions, vocabulary], logits; targets : int64[positions].
    """
    total = np.zeros(5)
    height = max(1, _DOUBLES // p.shape[1])
    for top in range(0, len(p), height):
        log_p, log_q = (_log_softmax(logits[top : top + height]) for logits in (p, q))
        wanted = targets[top : top + height, None]
        loss_p, loss_q = (-float(np.take_along_axis(logs, wanted, 1).sum()) for logs in (log_p, log_q))
        # Of logits that are not numbers, the first would be the likeliest for both: they agree on nothing.
        numbers = ~(np.isnan(log_p).any(1) | np.isnan(log_q).any(1))
        agreements = int(np.count_nonzero((log_p.argmax(1) == log_q.argmax(1)) & numbers))
        total += (loss_p, loss_q, loss_q - loss_p, _divergence(log_p, log_q), agreements)
    return total


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted
