"""Text from a language model: greedy, or sampled with a temperature among the k most likely tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import UsageError
from rbe_cli.layers.causal_model import CausalModel, Tokens


def choose(logits: NDArray[np.float32], temperature: float, top_k: int, rng: np.random.Generator) -> int:
    """One token from float32[vocabulary] logits: the likeliest at temperature 0, else drawn from the softmax.

    `top_k` 0 draws from all tokens. Among equals, lower numbers come first.

    >>> choose(np.array([0, 3, 1], np.float32), 0.0, 0, np.random.default_rng(0))
    1
    """
    if temperature == 0:
        return int(np.argmax(logits))
    kept = np.argsort(-logits, kind="stable")[: top_k or logits.size]
    scaled = logits[kept].astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(kept[rng.choice(kept.size, p=weights / weights.sum())])


def generate(
    model: CausalModel, prompt: Tokens, count: int, *, temperature: float = 0.0, top_k: int = 0, seed: int = 0
) -> Tokens:
    """Continue a text.

    Parameters
    ----------
    prompt : int64[n], n > 0
    count : int
        Tokens to write. With the prompt at most the model's context + 1: the last one is never read.
    temperature : float
        0 is greedy; 1 the model's own distribution.
    top_k : int
        Draw among so many of the likeliest; 0 is all.
    seed : int
        The same seed gives the same text.

    Returns
    -------
    int64[count]
        The new tokens alone.

    Raises
    ------
    UsageError
        An empty prompt, a text longer than the context, a temperature or number out of range.
    """
    if not prompt.size:
        raise UsageError("a text to continue must have at least one token")
    if not (np.isfinite(temperature) and temperature >= 0 and top_k >= 0 and count >= 0):
        raise UsageError("temperature, top_k and the number of tokens must not be negative")
    if prompt.size + count > model.context + 1:
        raise UsageError(f"{prompt.size} + {count} tokens are more than the model's context of {model.context}")
    rng = np.random.default_rng(seed)
    text = model.continuation()
    out = np.zeros(count, np.int64)
    fed = prompt
    for i in range(count):
        out[i] = choose(text.feed(fed), temperature, top_k, rng)
        fed = out[i : i + 1]
    return out
