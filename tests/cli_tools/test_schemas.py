"""`--json` of every command is as docs/schemas says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbe_cli.cli import app
from tests.command_line import Run
from tests.schema import FOLDER, check_document

DOCUMENTS: list[tuple[str, ...]] = [
    ("inspect", "MINI", "--max-size", "9MB", "--min-snr", "1"),
    ("inspect", "LAYER"),
    ("inspect", "TINY"),
    ("decode", "MINI", "-o", "back"),
    ("verify", "MINI"),
    ("verify", "MINI", "--against", "mini-gpt2"),
    ("compress", "TINY", "--bits", "6", "-o", "out", "--min-ratio", "2"),
    ("compress", "TINY", "--bits", "6", "--dry-run"),
    ("compress", "TINY", "--lossless", "-o", "exact"),
    ("sweep", "TINY", "--bits", "0.03,6", "--efforts", "0"),
    ("sweep", "TINY", "--bits", "6", "--sample", "0.5"),
    ("bench", "MINI", "--reference", "mini-gpt2", "--quality-only", "--tokens", "200", "--max-kl", "9"),
    ("bench", "model", "MINI", "MINI", "--reference", "mini-gpt2", "--tokens", "200"),
    ("bench", "codec", "TINY", "--synthetic", "0", "--bits", "6", "--efforts", "0", "--repeat", "1"),
    ("calibrate", "mini-gpt2", "--tokens", "200", "-o", "importance.safetensors"),
]


@pytest.mark.parametrize("arguments", DOCUMENTS, ids=" ".join)
def test_document(run: Run, mini: Path, tiny_source: Path, arguments: tuple[str, ...]) -> None:
    places = {"MINI": mini, "LAYER": mini / "transformer.wte.rbe", "TINY": tiny_source}
    done = run(*(places.get(word, word) for word in arguments), "--json", "-q")
    assert done.code == 0, done.err
    assert done.json()["command"].split()[0] == arguments[0]


def test_every_command_has_a_schema() -> None:
    import typer

    from rbe_cli.cli.bench import app as bench

    commands = [command.name for command in app.registered_commands if command.name != "bench"]
    commands += [f"bench-{name}" for name in typer.main.get_command(bench).commands]
    assert {path.stem for path in FOLDER.glob("*.json")} == {*commands, "common"}


def test_the_checker_finds_what_is_wrong() -> None:
    good = {
        "command": "decode", "path": "a", "out": "b", "files": ["c"], "elements": 1, "decoded_bytes": 4,
        "seconds": 0.5, "decode_ns_per_weight": None,
    }  # fmt: skip
    check_document(good)
    for wrong in ({"elements": "1"}, {"elements": True}, {"more": 1}, {"files": [1]}, {"path": None}):
        with pytest.raises(AssertionError):
            check_document(good | wrong)
    with pytest.raises(AssertionError):
        check_document({name: value for name, value in good.items() if name != "out"})


def test_they_are_json_schema() -> None:
    for path in FOLDER.glob("*.json"):
        assert json.loads(path.read_text())["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_a_figure_of_one_name_is_the_same_everywhere(run: Run, mini: Path) -> None:
    """Before, as forecast, and after: the bytes of a checkpoint are those of its tensors."""
    sources = [
        run(*arguments, "--json", "-q").json()["totals"]["source_bytes"]
        for arguments in (("inspect", "mini-gpt2"), ("compress", "mini-gpt2", "--dry-run"), ("inspect", mini))
    ]
    assert len(set(sources)) == 1
