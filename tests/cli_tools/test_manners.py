"""Narrow terminals, shell completion, and what goes to stderr when nothing or everything is wanted there."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich import box
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from rbe_cli.cli import tables
from rbe_cli.container.manifest import ChoiceEntry, TensorEntry
from tests.command_line import Run, rbe_process
from tests.synthetic import scaled_normal

TENSORS = [
    TensorEntry(
        f"transformer.h.{i}.attn.c_attn.weight", "F32", (128, 384), "trellis", 20000, 0.01, 0.1, 0,
        ChoiceEntry("lowrank", 1.5, "none", 0.0),
    )
    for i in range(3)
]  # fmt: skip


@pytest.mark.parametrize("width", [50, 60, 80, 100, 120, 200])
def test_no_cell_is_cut_at_any_width(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width)
    tables.show(console, tables.tensor_table(TENSORS, {}, whole=True), markdown=False)
    text = out.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= width
    for column in ("tensor", "bits/w", "NRMSE", "SNR dB"):
        assert column in text
    shown = [
        column for column in ("method", "shape", "dtype", "gap dB", "ratio") if column in text.split("for want")[0]
    ]
    assert ("for want of width, without:" in text) == (len(shown) < 5)
    assert (len(shown) == 5) == (width == 200)


@pytest.mark.parametrize("width", [12, 20, 30])
def test_a_table_is_a_list_where_there_is_no_room_for_columns(width: int) -> None:
    out = io.StringIO()
    tables.show(Console(file=out, width=width), tables.tensor_table(TENSORS, {}, whole=True), markdown=False)
    assert max(map(len, out.getvalue().splitlines())) <= width
    text = "".join(out.getvalue().split())
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "tensortransformer.h.1.attn.c_attn.weightshape128x384dtypeF32methodtrellis,lowrank+1.50dB" in text
    assert "for want" not in out.getvalue()


def test_columns_move_closer_before_a_table_is_a_list() -> None:
    first_lines = []
    for width in (27, 25, 24):
        out, table = io.StringIO(), Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("figure", "reference", "here"):
            table.add_column(column, no_wrap=True)
        table.add_row("size", "12", "34")
        tables.show(Console(file=out, width=width), table, markdown=False)
        first_lines.append(out.getvalue().splitlines()[0].rstrip())
    assert first_lines == [" figure   reference   here", " figure  reference  here", "figure size"]


def test_markdown_has_every_column_at_any_width() -> None:
    out = io.StringIO()
    tables.show(Console(file=out, width=40), tables.tensor_table(TENSORS, None, whole=True), markdown=True)
    assert out.getvalue().startswith("\n| tensor | shape | dtype | method | bits/w |")


@pytest.mark.parametrize("width", ["0", "-1", "many", "\N{SUPERSCRIPT TWO}", "9" * 30])
def test_a_width_that_is_none_counts_as_not_given(mini: Path, width: str) -> None:
    for arguments in (("inspect", mini), ("inspect", "--help")):
        expected = rbe_process(*arguments)
        assert rbe_process(*arguments, COLUMNS=width, TERMINAL_WIDTH=width) == expected
        assert expected.out


def test_completion_knows_commands_and_options() -> None:
    environment = {"_RBE_COMPLETE": "complete_bash", "COMP_WORDS": "rbe ver", "COMP_CWORD": "1"}
    assert rbe_process(**environment).out.split() == ["verify"]
    environment |= {"COMP_WORDS": "rbe compress --ob", "COMP_CWORD": "2"}
    assert rbe_process(**environment).out.split() == ["--objective"]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("compress mini-gpt2 --preset ", "balanced extreme lossless near-lossless small"),
        ("compress --preset s", "small"),
        ("compress --objective ", "balanced mse"),
        ("compress --transform d", "dct dwt"),
        ("sweep --sort s", "size snr seconds"),
        ("bench model m.rbe --engine t", "transformers"),
    ],
)
def test_completion_knows_values(words: str, values: str) -> None:
    typed = f"rbe {words}"
    environment = {"_RBE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    assert rbe_process(**environment).out.split() == values.split()


def test_one_of_a_thing_is_no_plural(run: Run, tmp_path: Path) -> None:
    save_file({"a.weight": scaled_normal((64, 64), 1)}, tmp_path / "one.safetensors")
    done = run("compress", "one.safetensors", "--bits", 9, "-j", 1, "-o", "one.rbe")
    assert "\n1 tensor, 4,096 weights: " in done.out
    assert " s on 1 thread, " in done.out
    done = run("bench", "mini-gpt2", "--reference", "mini-gpt2", "--quality-only", "--tokens", 2)
    assert ": 1 token of " in done.out
    assert "in 1 window of " in done.out
    assert "+-" not in done.out


def test_bench_takes_options_before_the_path(run: Run, mini: Path) -> None:
    options = ("--tokens", 40, "--quality-only", "--reference", "mini-gpt2", "-q")
    done = run("bench", *options, mini)
    assert done.code == 0
    assert done == run("bench", mini, *options)
    assert "rbe bench model --help" in run("bench", "--bogus", mini).complaint()


def test_how_much_is_told(run: Run, tiny_source: Path) -> None:
    command = ("compress", tiny_source, "--bits", 6, "--force", "-o", "m")
    normal, silent, verbose = run(*command), run(*command, "--no-progress"), run(*command, "-v")
    assert "encoding ..." in normal.err
    assert silent.err.splitlines() == ["note: wild.weight: holds NaN or infinity in float32, kept exactly"]
    assert "h.0.attn.weight: none" in verbose.err
    assert "pass 1: step multiplier" in verbose.err
    assert run(*command, "-q").err == ""
    assert run(*command, "-q", "-v").code == 2
