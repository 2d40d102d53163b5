"""Presets, budgets and patterns a stranger may have written: one line that says what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.errors import UsageError
from rbe_cli.operations.bench_sources import of_checkpoint
from rbe_cli.operations.budgets import read_bounds
from rbe_cli.operations.presets import read_preset, resolve
from rbe_cli.operations.settings import Settings

HUGE, LONG = "0x" + "f" * 5000, "9" * 400
#: Patterns that end in an OverflowError, a RecursionError and a plain error.
PATTERNS = ["a{99999999999999999999}", "(" * 3000 + ")" * 3000, "(" * 5000]
PRESETS = [
    f"{key} = {number}" for key in ("size", "bits", "effort", "block", "lossless", "k") for number in (HUGE, LONG)
]
PRESETS += [f'{key} = ["{p}{goal}"]' for p in PATTERNS for key, goal in (("include", ""), ("overrides", "=bits:4"))]
BUDGETS = [f"{key} = {number}" for key in ("max_size", "max_nrmse", "min_snr", "tensors") for number in (HUGE, LONG)]
BUDGETS += [f'[tensors."{pattern}"]\nmax_nrmse = 1' for pattern in PATTERNS]
BUDGETS += [f'[tensors."x"]\nmax_nrmse = [{HUGE}]', ".".join("a" * 5000) + f" = {HUGE}"]


@pytest.mark.parametrize("text", PRESETS, ids=range(len(PRESETS)))
def test_preset(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        resolve(str(tmp_path / "my.toml"), {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", BUDGETS, ids=range(len(BUDGETS)))
def test_budget(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        read_bounds(tmp_path / "my.toml")
    assert "\n" not in str(error.value)


def test_whole_numbers_of_64_bits_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(f"size = {(1 << 62) - 1}")
    assert read_preset(str(tmp_path / "my.toml"))["size"] == (1 << 62) - 1


@pytest.mark.parametrize("pattern", PATTERNS, ids=range(len(PATTERNS)))
def test_pattern(pattern: str, tiny_source: Path) -> None:
    with pytest.raises(UsageError):
        of_checkpoint(open_checkpoint(tiny_source), pattern, 1 << 20)
    for wrong in ({"include": (pattern,)}, {"exclude": (pattern,)}, {"overrides": (f"{pattern}=bits:4",)}):
        with pytest.raises(UsageError):
            Settings(**wrong)  # type: ignore[arg-type]
