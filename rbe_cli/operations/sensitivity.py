"""`rbe calibrate --sensitivity`: what a model loses when one tensor alone is coded coarsely, and bits to suit."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import __version__
from rbe_cli.calibration.observed import ObservedModel, observe
from rbe_cli.container.folder import Folder
from rbe_cli.errors import RBEError, UsageError
from rbe_cli.files.atomic import atomic_file
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.calibrate import calibration_batches, default_text
from rbe_cli.operations.compress import compress
from rbe_cli.operations.engines import math_threads
from rbe_cli.operations.model_quality import Estimate, divergence, turned
from rbe_cli.operations.model_text import LONGEST
from rbe_cli.operations.progress import Progress, Silent
from rbe_cli.operations.settings import Settings

DEFAULT_TOKENS = 4096
#: Bits per weight of the coarse coding: far enough from exact to be felt, near enough for losses to add up.
COARSE_BITS = 3.0
#: The loss goes with this power of the squared error: at few bits it grows faster (measured, docs/calibration.md).
_GROWTH = 1 / 0.7
#: Fewer or more bits than this are not suggested: a tensor of no bits at all is no longer on the curve.
_FEWEST, _MOST = -1.0, 4.0
#: Losses below this part of the largest are rounding.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Sensitivity:
    """What one tensor does to the model.

    Attributes
    ----------
    loss : Estimate
        With this tensor alone coded coarsely: KL(original || altered) in nats per token of a language model, or
        1 - cosine of the embeddings of an encoder.
    more_bits : float
        Bits per weight it should have beyond the mean; the weighted sum over all tensors is 0 but for the reach.
    """

    name: str
    elements: int
    loss: Estimate
    more_bits: float


@dataclass(frozen=True)
class Sensitivities:
    """All of them, by name, and how they were measured."""

    tensors: list[Sensitivity]
    source: str
    text: Path
    tokens: int
    bits: float
    figure: str


def measure_sensitivity(
    source: str,
    *,
    text: Path | None = None,
    limit: int = DEFAULT_TOKENS,
    context: int | None = None,
    settings: Settings | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Sensitivities:
    """Code a model coarsely, and measure it with one tensor of those at a time in the place of the original's.

    Parameters
    ----------
    source, text, context, threads
        As for `calibrate`.
    limit : int
        Tokens of the text at most; the model reads them once for each tensor.
    settings : Settings or None
        How to code; by default 3 bits. All tensors have one step relative to their scale, whatever its overrides say.

    Raises
    ------
    RBEError, CorruptFile, UsageError
    """
    progress = progress or Silent()
    files = ModelFiles.open(source)
    if files.checkpoint is None:
        raise UsageError(f"{source}: is compressed already; measure the original")
    text = text or default_text(source)
    model = observe(files)
    settings = replace(settings or Settings(bits=COARSE_BITS), overrides=(".=bits:+0",))
    with tempfile.TemporaryDirectory() as folder:
        done = compress(files.checkpoint, Path(folder) / "coarse", settings, progress=progress)
        opened = Folder.open(Path(folder) / "coarse")
        coarse = {
            tensor.name: opened.tensor(tensor.name).astype(np.float32)
            for tensor in done.manifest.tensors
            if tensor.lossy and len(tensor.shape) == 2
        }
    if not coarse:
        raise RBEError(f"{source}: has no matrix to be coded coarsely")
    with math_threads(threads):
        losses, tokens = _losses(model, files, text, limit, min(context or LONGEST, model.context), coarse, progress)
    more = suggest({name: (losses[name].value, losses[name].error, coarse[name].size) for name in coarse})
    found = [Sensitivity(name, coarse[name].size, losses[name], more[name]) for name in coarse]
    figure = "1 - cosine" if model.reads_lines else "KL, nats per token"
    return Sensitivities(found, files.name, text, tokens, settings.bits or math.nan, figure)


def _losses(
    model: ObservedModel,
    files: ModelFiles,
    text: Path,
    limit: int,
    context: int,
    coarse: Mapping[str, NDArray[np.float32]],
    progress: Progress,
) -> tuple[dict[str, Estimate], int]:
    """The loss of each tensor, and the tokens read. A part of the text meets all tensors, then the next part."""
    texts = calibration_batches(files, model, text, limit, context)
    sums: dict[str, list[float]] = {name: [] for name in coarse}
    counts: list[int] = []
    progress.phase("measuring one tensor at a time", len(texts) * len(coarse))
    for batch in texts:
        exact = model.answers(batch)
        counts += [1 if model.reads_lines else batch.shape[1]] * len(batch)
        for name, values in coarse.items():
            with model.altered(name, values):
                altered = model.answers(batch)
            sums[name] += _distances(model, exact, altered)
            progress.advance(1)
    counted = np.array(counts, np.float64)
    found = {name: Estimate.of_windows(np.array(values), counted) for name, values in sums.items()}
    return found, sum(batch.size for batch in texts)


def _distances(model: ObservedModel, exact: NDArray[np.float32], altered: NDArray[np.float32]) -> list[float]:
    """For each text, the sum of KL over its tokens, or 1 - cosine."""
    if model.reads_lines:
        return [float(one) for one in turned(exact, altered)]
    return [divergence(p, q) for p, q in zip(exact, altered, strict=True)]


def suggest(losses: Mapping[str, tuple[float, float, int]]) -> dict[str, float]:
    """More bits than the mean for each tensor, of its loss at a common step, that loss' error, and its weights.

    With loss s_t 4^(-g b_t), g = 1.43, and b_t bits for each of n_t weights, the sum of the losses is least at a given
    size where s_t 4^(-g b_t) / n_t is the same for all (Lagrange): b_t = mean + log2(s_t / n_t) / 2 g - its weighted
    mean. What is lost in the noise counts as large as the noise. What has no effect at all (an encoder's pooler, say,
    on its embeddings) was not measured: it gets the mean.

    >>> suggest({"a": (0.04, 0.0, 100), "b": (0.01, 0.0, 100)})
    {'a': 0.35, 'b': -0.35}
    """
    felt = max(value for value, _, _ in losses.values()) * _NOTHING
    wish = {
        name: math.log2(max(value, error) / n) / (2 * _GROWTH)
        for name, (value, error, n) in losses.items()
        if max(value, error) > felt
    }
    elements = max(sum(losses[name][2] for name in wish), 1)
    mean = sum(bits * losses[name][2] for name, bits in wish.items()) / elements
    more = {name: min(max(round(bits - mean, 2), _FEWEST), _MOST) for name, bits in wish.items()}
    return {name: more.get(name, 0.0) for name in losses}


def write_overrides(path: Path, found: Sensitivities) -> None:
    """Write what was found as a TOML file that `rbe compress --overrides` reads and a person can edit."""
    with atomic_file(path) as file:
        file.write("".join(_lines(found)).encode())


def _lines(found: Sensitivities) -> Iterator[str]:
    digest = hashlib.sha256(found.text.read_bytes()).hexdigest()
    yield f"# Written by rbe {__version__} calibrate --sensitivity, for rbe compress --overrides. Bits per weight\n"
    yield "# more or less than the mean that each tensor should have, and why: behind it stands the model's\n"
    yield f"# {found.figure} when that tensor alone is coded, as all are at {found.bits:g} bits.\n"
    yield f"# Source {found.source}, {found.tokens} tokens of a text of SHA-256 {digest}.\n"
    yield "overrides = [\n"
    for tensor in sorted(found.tensors, key=lambda tensor: -tensor.more_bits):
        override = _quoted(f"^{re.escape(tensor.name)}$=bits:{tensor.more_bits:+.2f}")
        yield f"  {override},  # {tensor.loss.value:.6f} +- {tensor.loss.error:.6f}, {tensor.elements} weights\n"
    yield "]\n"


def _quoted(text: str) -> str:
    """A TOML string: as it is between single quotes where it can be."""
    return f"'{text}'" if text.isprintable() and "'" not in text else json.dumps(text)
