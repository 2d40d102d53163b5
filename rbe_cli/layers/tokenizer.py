"""A model's tokenizer, through the tokenizers library, and the text it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rbe_cli.errors import CorruptFile, RBEError


def load_tokenizer(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a `tokenizer.json`. Raises RBEError without the library, CorruptFile."""
    try:
        import tokenizers
    except ImportError:
        raise RBEError("this model's text needs the tokenizers library: pip install 'rbe-cli[tokenizers]'") from None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise CorruptFile(f"{path}: not a tokenizer ({str(error).splitlines()[0]})") from None


def decode_text(data: bytes, path: Path) -> str:
    """The text of a file. Raises RBEError."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RBEError(f"{path}: is not UTF-8 text") from None
