"""The options that say how to compress: how far, how, and with which structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from rbe_cli.cli.options import completing
from rbe_cli.codec.parameters import CHOICES
from rbe_cli.operations.presets import names, read_overrides, resolve
from rbe_cli.operations.settings import DEFAULT_BITS, EFFORT_STATES, OBJECTIVES, Settings
from rbe_cli.operations.sizes import parse_size

_RATE, _HOW, _STRUCTURE = "How far (one of)", "How", "Structure"


def _option(
    panel: str, *flags: str, metavar: str | None = None, text: str, default: Any = None, values: Sequence[str] = ()
) -> Any:
    """An option whose default is another setting's affair: None here, and told in the help."""
    told = "" if default is None else rf"  \[default: {default}]"
    complete = completing(*values) if values else None
    return typer.Option(*flags, metavar=metavar, help=text + told, rich_help_panel=panel, autocompletion=complete)


_PRESETS = names()


@dataclass(frozen=True)
class DetailOptions:
    """What the command line says of the settings that a sweep has one value of; None is what it does not say."""

    preset: Annotated[
        str | None,
        _option(
            _HOW,
            metavar="NAME|FILE.toml",
            text=f"Settings to start from: {', '.join(_PRESETS)}, or a file, - for stdin; what else "
            "the command line says wins.",
            values=_PRESETS,
        ),
    ] = None
    overrides: Annotated[
        list[str] | None,
        _option(
            _HOW,
            "--override",
            metavar="REGEX=GOAL",
            text="For tensors that match: bits:6, bits:+0.5 (more than their share), nrmse:0.01, lossless or skip. "
            "Repeatable; the first match counts.",
        ),
    ] = None
    overrides_file: Annotated[
        Path | None,
        _option(
            _HOW, "--overrides", metavar="FILE.toml", text="A file of them, as rbe calibrate --sensitivity writes it."
        ),
    ] = None
    importance: Annotated[
        Path | None,
        _option(
            _HOW,
            metavar="FILE",
            text="What rbe calibrate or llama.cpp measured of the layers' inputs: the steps follow it.",
        ),
    ] = None
    feedback: Annotated[
        bool | None,
        _option(
            _HOW,
            "--feedback/--no-feedback",
            text="Where that file has second moments, feed the error of each input's weights into the next ones'.",
            default="feedback",
        ),
    ] = None
    include: Annotated[
        list[str] | None,
        _option(_HOW, metavar="REGEX", text="Approximate only tensors that match; the others stay exact. Repeatable."),
    ] = None
    exclude: Annotated[
        list[str] | None, _option(_HOW, metavar="REGEX", text="Keep tensors that match exactly. Repeatable.")
    ] = None
    structure_only: Annotated[
        bool | None,
        _option(
            _STRUCTURE,
            "--structure-only",
            text="No coded residual: low rank, or sparse blocks with the 8 basis functions. Of --effort, only how near "
            "to the wish it comes counts then.",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        _option(_STRUCTURE, metavar="T", text="Drop coefficients below T x RMS.", default=Settings.threshold),
    ] = None

    def given(self) -> dict[str, Any]:
        """The settings by their names, but for the preset. Raises UsageError."""
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        del given["preset"], given["overrides_file"]
        if self.overrides_file is not None:
            given["overrides"] = (given["overrides"] or ()) + read_overrides(self.overrides_file)
        return given


@dataclass(frozen=True)
class EncoderOptions:
    """What it says of those that make a sweep; None is what it does not say."""

    bits: Annotated[
        float | None,
        _option(_RATE, metavar="B", text="At most B bits per weight, every byte counted.", default=DEFAULT_BITS),
    ] = None
    ratio: Annotated[float | None, _option(_RATE, metavar="R", text="At least R times smaller.")] = None
    size: Annotated[
        str | None, _option(_RATE, metavar="SIZE", text="At most this large, like 60MB: the .rbe files and rbe.json.")
    ] = None
    nrmse: Annotated[
        float | None,
        _option(_RATE, metavar="E", text="Relative error of at most E in every tensor (0.07 is 23 dB)."),
    ] = None
    rmse: Annotated[float | None, _option(_RATE, metavar="E", text="The same in the weights' own unit.")] = None
    lossless: Annotated[bool | None, _option(_RATE, "--lossless", text="Every bit of every tensor.")] = None
    objective: Annotated[
        str | None,
        _option(
            _HOW,
            metavar="balanced|mse",
            text="balanced: more error where rows and columns are large, which models feel least. mse: least error.",
            default=Settings.objective,
            values=OBJECTIVES,
        ),
    ] = None
    effort: Annotated[
        int | None,
        _option(
            _HOW,
            metavar="0..9",
            text=f"How long to search ({EFFORT_STATES[0]} to {EFFORT_STATES[-1]} trellis states) and, from 7, how near "
            "to the wish to come; decoding is alike.",
            default=Settings.effort,
        ),
    ] = None
    transform: Annotated[
        str | None,
        _option(
            _STRUCTURE,
            metavar="NAME",
            text=f"{', '.join(CHOICES)}; auto chooses per tensor.",
            default=Settings.transform,
            values=CHOICES,
        ),
    ] = None
    k: Annotated[
        int | None,
        _option(_STRUCTURE, "--k", metavar="1..16", text="Wavelet levels of a block.", default=Settings.k),
    ] = None
    block: Annotated[int | None, _option(_STRUCTURE, metavar="N", text="Blocks of N x N.", default=Settings.block)] = (
        None
    )

    def settings(self, detail: DetailOptions, jobs: int) -> Settings:
        """What they come to, over the preset. Raises UsageError."""
        size = None if self.size is None else parse_size(self.size, "--size")
        return resolve(detail.preset, vars(self) | {"size": size, "jobs": jobs} | detail.given())
