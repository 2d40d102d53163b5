"""`rbe calibrate`: what a text says about the inputs of a model's weights, written as an importance file."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import __version__, models
from rbe_cli.calibration.batches import by_length, sentences, spread, windows
from rbe_cli.calibration.importance import MOMENTS
from rbe_cli.calibration.observed import Inputs, ObservedModel, observe
from rbe_cli.calibration.sums import Moments, Squares
from rbe_cli.checkpoint.reader import Checkpoint
from rbe_cli.checkpoint.writer import Tensor, layout, write_safetensors
from rbe_cli.errors import RBEError, UsageError
from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.choices import CALIBRATION_TOKENS
from rbe_cli.operations.engines import math_threads
from rbe_cli.operations.model_text import LONGEST, read_text
from rbe_cli.operations.progress import Progress, Silent

#: Sums of second moments that are held at once, in bytes; one matrix alone may be larger.
MOMENTS_AT_ONCE = 1 << 30


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found.

    Attributes
    ----------
    inputs : dict of Inputs
        By the name of the weight.
    mean_squares : dict of float64[channels]
    tokens : int
        Tokens read.
    passes : int
        Times the text was read.
    bytes : int
        Size of the file.
    """

    inputs: dict[str, Inputs]
    mean_squares: dict[str, NDArray[np.float64]]
    tokens: int
    passes: int
    bytes: int
    seconds: float

    def gain(self, name: str) -> float:
        """Arithmetic over geometric mean of the inputs' mean squares, in dB; channels that are always 0 left out."""
        values = self.mean_squares[name][self.mean_squares[name] > 0]
        return 10 * math.log10(values.mean()) - 10 * float(np.log10(values).mean()) if values.size else math.nan


def calibrate(
    source: str,
    out: Path,
    *,
    text: Path | None = None,
    limit: int = CALIBRATION_TOKENS,
    context: int | None = None,
    moments: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> Calibrated:
    """Run a model over a text and write the mean square of each input of each weight.

    Parameters
    ----------
    source : str
        A checkpoint's folder, a repository or a shipped model, with its config.json.
    out : Path
        A safetensors file, which appears when it is complete; the same bytes for the same source, text and threads.
    text : Path or None
        By default the calibration text of a shipped model. A language model reads it in windows side by
        side; an encoder reads each line as a text of its own.
    limit : int
        Tokens at most; of a longer text, windows or lines from everywhere in it.
    context : int or None
        Tokens of a window; by default the model's, 1024 at most.
    moments : bool
        Also write the second moments of the inputs, n x n for n channels. Their sums are held in float64, as many at
        once as fit in 1 GiB (or one, if that alone is larger): the text is read again for the next ones.
    threads : int
        Of the linear algebra library; the last bits may depend on it.

    Raises
    ------
    RBEError, CorruptFile, UsageError
    """
    progress = progress or Silent()
    started = time.perf_counter()
    files = ModelFiles.open(source)
    if files.checkpoint is None:
        raise UsageError(f"{source}: is compressed already; calibrate the original")
    files.checkpoint.check_output(out)
    text = text or default_text(source)
    model = observe(files)
    batches = calibration_batches(files, model, text, limit, min(context or LONGEST, model.context))
    run = _Run(model, batches, progress)
    with math_threads(threads):
        mean_squares = run.mean_squares()
        shared = _alike(mean_squares) if moments else {}
        metadata = {
            "kind": "rbe importance",
            "tool": f"rbe {__version__}",
            "tokens": str(run.tokens),
            "text_sha256": hashlib.sha256(text.read_bytes()).hexdigest(),
            "source": files.checkpoint.name,
            "source_sha256": _json(fingerprint(files.checkpoint)),
            "input_axis": _json({name: run.inputs[name].axis for name in mean_squares}),
        } | ({"shared": _json(shared)} if moments else {})
        plain: list[Tensor] = [(name, "F32", values.shape) for name, values in mean_squares.items()]
        wanted = [name for name in mean_squares if shared.get(name, name) == name] if moments else []
        square: list[Tensor] = [(name + MOMENTS, "F32", 2 * mean_squares[name].shape) for name in wanted]
        tensors = layout([*plain, *square])
        write_safetensors(out, tensors, run.arrays([name for name, _, _ in tensors], mean_squares), metadata)
    return Calibrated(
        run.inputs, mean_squares, run.tokens, run.passes, out.stat().st_size, time.perf_counter() - started
    )


def default_text(source: str) -> Path:
    """The calibration text of a shipped model. Raises UsageError for any other."""
    if source not in models.NAMES:
        raise UsageError(f"{source}: give a text to calibrate on with --text")
    return models.calibration_text(source)


def calibration_batches(files: ModelFiles, model: ObservedModel, text: Path, limit: int, context: int) -> list[Tokens]:
    """A text as what the model reads, int64[texts, positions] each. Raises RBEError if there is nothing to read."""
    if model.reads_lines:
        texts = sentences(files, text, context)
    else:
        texts = windows(read_text(files, text, None).tokens, context)
    batches = list(by_length(spread(texts, limit)))
    if not any(batch.size for batch in batches):
        raise RBEError(f"{text}: has no text to calibrate on")
    return batches


def fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of each shard, by its path within the checkpoint."""
    return {shard.relative: shard.sha256() for shard in checkpoint.shards}


class _Run:
    """A model and the text it reads, once or more often."""

    def __init__(self, model: ObservedModel, batches: list[Tokens], progress: Progress) -> None:
        self.model, self.batches, self.progress = model, batches, progress
        self.inputs = model.inputs()
        self.tokens = sum(batch.size for batch in batches)
        self.passes = 0

    def mean_squares(self) -> dict[str, NDArray[np.float64]]:
        """Of every weight that was used at all, by name."""
        sums = {name: Squares(inputs.channels) for name, inputs in self.inputs.items()}
        self._read(sums)
        return {name: _finite(name, each.mean()) for name, each in sorted(sums.items()) if each.count}

    def arrays(
        self, names: list[str], mean_squares: Mapping[str, NDArray[np.float64]]
    ) -> Iterator[list[NDArray[np.uint8]]]:
        """The bytes of the file's tensors in order; second moments are summed when their turn comes, some at once."""
        ready: dict[str, Moments] = {}
        for i, name in enumerate(names):
            if name in mean_squares:
                yield [_bytes(mean_squares[name])]
                continue
            if name not in ready:
                ready = self._moments([later for later in names[i:] if later not in mean_squares])
            yield [_bytes(_finite(name, ready.pop(name).mean()))]

    def _moments(self, names: list[str]) -> dict[str, Moments]:
        """Those of the first names that fit in memory, by name."""
        sums: dict[str, Moments] = {}
        held = 0
        for name in names:
            channels = self.inputs[name.removesuffix(MOMENTS)].channels
            held += 8 * channels**2
            if sums and held > MOMENTS_AT_ONCE:
                break
            sums[name] = Moments(channels)
        self._read({name.removesuffix(MOMENTS): each for name, each in sums.items()})
        return sums

    def _read(self, observers: Mapping[str, Squares | Moments]) -> None:
        self.passes += 1
        self.progress.phase("reading text" if self.passes == 1 else f"reading text, pass {self.passes}", self.tokens)
        for batch in self.batches:
            with np.errstate(all="ignore"):
                self.model.read(batch, observers)
            self.progress.advance(batch.size)


def _alike(mean_squares: Mapping[str, NDArray[np.float64]]) -> dict[str, str]:
    """Name -> the first name with the same inputs, where that is another: queries, keys and values, for example.

    Inputs whose mean squares over thousands of tokens are the same to the last bit are the same.
    """
    first: dict[bytes, str] = {}
    shared = {name: first.setdefault(values.tobytes(), name) for name, values in mean_squares.items()}
    return {name: other for name, other in shared.items() if other != name}


def _finite(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means that a float32 holds. Raises RBEError for others, which would be importance of nothing."""
    with np.errstate(all="ignore"):
        if np.isfinite(values.astype(np.float32)).all():
            return values
    raise RBEError(
        f"{name}: its inputs are not finite, or too large: weights of this model or of a layer before are not"
    )


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, np.float32).view(np.uint8).ravel()


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
