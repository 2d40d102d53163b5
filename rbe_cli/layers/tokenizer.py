"""Text as a model's tokens, through the tokenizers library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rbe_cli.errors import CorruptFile, RBEError, first_line
from rbe_cli.layers.causal_model import Tokens


def encode(path: Path, text: str) -> Tokens:
    """A text as the tokens of a `tokenizer.json`. Raises RBEError without the library, CorruptFile."""
    with _tokenizer(path) as tokenizer:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)


def encode_lines(path: Path, lines: Sequence[str], longest: int) -> list[Tokens]:
    """Lines with the special tokens the tokenizer puts in, each cut to `longest`, or less if it says so itself.

    Raises RBEError without the library, CorruptFile.
    """
    with _tokenizer(path) as tokenizer:
        tokenizer.enable_truncation(min(longest, (tokenizer.truncation or {}).get("max_length", longest)))
        return [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode_batch(lines)]


@contextmanager
def _tokenizer(path: Path) -> Iterator[Any]:
    """The `tokenizers.Tokenizer` of a file, which pads nothing; whatever the library raises meanwhile is the file's."""
    try:
        import tokenizers
    except ImportError:
        raise RBEError("this model's text needs the tokenizers library: pip install 'rbe-cli[tokenizers]'") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        yield tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # its panics are no Exception
        raise CorruptFile(f"{path}: not a tokenizer ({first_line(error)})") from None


def decode_text(data: bytes, path: Path) -> str:
    """The text of a file. Raises RBEError."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RBEError(f"{path}: is not UTF-8 text") from None
