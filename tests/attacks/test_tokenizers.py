"""Hostile tokenizers beside the weights: whatever the library does, one error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbe_cli.errors import CorruptFile
from rbe_cli.layers.tokenizer import encode, encode_lines

pytest.importorskip("tokenizers")
WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
FORM: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": WORDS,
}  # fmt: skip
PADDING = {
    "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "a",
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[" * 100_000,
        json.dumps(FORM | {"model": WORDS | {"unk_token": "gone"}}),
        json.dumps(FORM | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}),
        json.dumps(FORM | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Removed",
                                             "invert": False}}),
    ],
)  # fmt: skip
def test_hostile_tokenizer(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(text)
    for tokens in (lambda: encode(file, "b b"), lambda: encode_lines(file, ["b b"], 8)):
        with pytest.raises(CorruptFile, match=r"tokenizer.json: not a tokenizer \(.+\)"):
            tokens()


def test_padding_is_not_done(tmp_path: Path) -> None:
    """A thousand million tokens for one word."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(FORM | {"padding": PADDING}))
    assert encode(file, "a").tolist() == [0]
    assert [line.tolist() for line in encode_lines(file, ["a"], 8)] == [[0]]
