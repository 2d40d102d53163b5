"""A calibration text as the batches of tokens a model reads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from rbe_cli.errors import RBEError
from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.layers.tokenizer import decode_text, encode_lines

#: Tokens of a batch at most, unless one text alone is longer.
BATCH = 2048


def windows(tokens: Tokens, context: int) -> list[Tokens]:
    """Cut int64[n] into windows of `context` one after the other; the last may be shorter.

    >>> [window.size for window in windows(np.arange(1000), 300)]
    [300, 300, 300, 100]
    """
    return [tokens[i : i + context] for i in range(0, tokens.size, context)]


def sentences(files: ModelFiles, path: Path, longest: int) -> list[Tokens]:
    """The lines of a text that are not empty, each int64[n] with the special tokens the model's tokenizer puts in.

    Lines of more than `longest` tokens, or of more than the tokenizer itself lets through, are cut. Raises RBEError.
    """
    file = files.file("tokenizer.json")
    if file is None:
        raise RBEError(f"{files.name}: no tokenizer.json beside the weights")
    lines = [line for line in decode_text(path.read_bytes(), path).splitlines() if line.strip()]
    return encode_lines(file, lines, longest)


def spread(texts: list[Tokens], limit: int) -> list[Tokens]:
    """As many of the texts as have `limit` tokens in all, from everywhere among them; the last may be cut.

    >>> [text.tolist() for text in spread([np.arange(i, i + 3) for i in range(0, 24, 3)], 7)]
    [[0, 1, 2], [12, 13, 14], [21]]
    """
    total = sum(text.size for text in texts)
    if total <= limit:
        return texts
    taken: list[Tokens] = []
    kept = seen = 0
    for text in texts:
        if kept * total <= limit * seen and kept < limit:
            taken.append(text[: limit - kept])
            kept += taken[-1].size
        seen += text.size
    return taken


def by_length(texts: list[Tokens]) -> Iterator[Tokens]:
    """Texts of one length side by side, int64[texts, positions] each batch: nothing has to be padded."""
    for size, alike in groupby(sorted(texts, key=len), len):
        group = list(alike)
        height = max(1, BATCH // max(size, 1))
        yield from (np.stack(group[i : i + height]) for i in range(0, len(group), height))
