"""The text a model is measured on, as its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rbe_cli import models
from rbe_cli.errors import RBEError
from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.layers.tokenizer import decode_text, encode

#: The held-out text that ships beside a model.
HELD_OUT = "heldout.txt"
#: Windows are no longer than this by default, whatever the model could read.
LONGEST = 1024
_BYTES = 256


@dataclass(frozen=True)
class Text:
    """A text in tokens.

    Attributes
    ----------
    name : str
        Of the file.
    tokens : int64[n]
    are_bytes : bool
        Each token is a byte.
    """

    name: str
    tokens: Tokens
    are_bytes: bool


def read_text(files: ModelFiles, path: Path | None, limit: int | None) -> Text:
    """Read a text file, or the held-out text beside the model, as the model's tokens, `limit` of them at most.

    A model of 256 tokens without a `tokenizer.json` reads bytes; others need the tokenizers library. Raises RBEError.
    """
    path = path or default_text(files)
    if path is None:
        raise RBEError(f"{files.name}: has no {HELD_OUT} beside it; give a text with --text")
    data = path.read_bytes()
    tokenizer = files.file("tokenizer.json")
    if tokenizer is not None:
        tokens, are_bytes = encode(tokenizer, decode_text(data, path)), False
    elif files.json("config.json").get("vocab_size") == _BYTES:
        tokens, are_bytes = np.frombuffer(data, np.uint8).astype(np.int64), True
    else:
        raise RBEError(f"{files.name}: no tokenizer.json beside the weights, and its tokens are not bytes")
    return Text(str(path), tokens[:limit], are_bytes)


def default_text(files: ModelFiles) -> Path | None:
    """The held-out text beside a model, or that of the shipped model it was made from."""
    beside = files.file(HELD_OUT)
    if beside is None and files.folder is not None and files.folder.manifest.source in models.NAMES:
        beside = models.path(files.folder.manifest.source) / HELD_OUT
    return beside if beside is not None and beside.is_file() else None
