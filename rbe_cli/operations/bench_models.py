"""`rbe bench model A B C`: several compressed models, or encoders, against one original on the same text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rbe_cli import metrics
from rbe_cli.calibration.batches import by_length, sentences, spread
from rbe_cli.errors import RBEError, UsageError
from rbe_cli.layers.causal_model import CausalModel, Tokens
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.bench_model import decoded_bytes, default_reference
from rbe_cli.operations.engines import ENGINES, load_model, math_threads
from rbe_cli.operations.model_quality import Estimate, Quality, score, turned
from rbe_cli.operations.model_text import LONGEST, default_text, read_text
from rbe_cli.operations.progress import Progress, Silent

Measured = tuple[Quality | None, NDArray[np.float64], NDArray[np.float64]]
#: Tokens an encoder is measured on by default.
_SENTENCE_TOKENS = 16384


@dataclass(frozen=True)
class Closeness:
    """How close one model is to the original.

    Attributes
    ----------
    path : str
    bytes : int
        Weights on disk, manifest included.
    bits : float
        Bits per weight of the original.
    quality : Quality or None
        Of a language model.
    sums, counts : float64[parts]
        KL in nats summed over the tokens of each window, and how many those are; or 1 - cosine of each sentence's
        embeddings, and ones.
    """

    path: str
    bytes: int
    bits: float
    quality: Quality | None
    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    @property
    def figure(self) -> Estimate:
        """KL in nats per token, or 1 - cosine."""
        return Estimate.of_windows(self.sums, self.counts)

    def over(self, other: Closeness) -> Estimate:
        """Figure over another's, its error from the pairs: the same text, part by part."""
        return Estimate.of_windows(self.sums, other.sums)


def compare_models(
    paths: Sequence[str],
    *,
    base: Sequence[str] = (),
    reference: str | None = None,
    text: Path | None = None,
    engine: str = "numpy",
    limit: int | None = None,
    context: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[str, list[Closeness]]:
    """Measure several models against the original of the first; the parameters are those of `bench_model`.

    An encoder (engine `transformers`) reads each line of the text by itself. Returns the original's name and what was
    measured, in the order given. Raises RBEError, CorruptFile, UsageError.
    """
    progress = progress or Silent()
    if engine not in ENGINES:
        raise UsageError(f"--engine must be {' or '.join(ENGINES)}, not {engine!r}")
    opened = [ModelFiles.open(path, base) for path in paths]
    reference = reference or default_reference(opened[0])
    original = ModelFiles.open(reference)
    if original.checkpoint is None:
        raise UsageError(f"{reference}: is compressed already; name the original with --reference")
    elements = sum(info.elements for _, info in original.checkpoint.tensors)
    text = text or default_text(opened[0]) or default_text(original)
    against: Callable[[ModelFiles], Measured]
    if is_encoder(original, engine):
        against = _encoder_measure(original, text, limit, context, progress)
    else:
        tokens = read_text(original, text, limit).tokens
        dense = load_model(original, engine)
        against = partial(_score, dense, tokens, engine, context, threads, progress)
    found = []
    with math_threads(threads):
        for files in opened:
            size = files.weight_bytes
            found.append(Closeness(files.name, size, metrics.bits_per_weight(size, elements), *against(files)))
    return reference, found


def is_encoder(files: ModelFiles, engine: str) -> bool:
    """Whether a model, run by transformers, is an encoder."""
    if engine != "transformers":
        return False
    from rbe_cli.layers.transformers_model import is_encoder as reads_both_ways

    return reads_both_ways(files.json("config.json"))


def _score(
    original: CausalModel,
    tokens: Tokens,
    engine: str,
    context: int | None,
    threads: int,
    progress: Progress,
    files: ModelFiles,
) -> Measured:
    model = load_model(files, engine, cache_bytes=decoded_bytes(files), threads=threads)
    window = min(context or LONGEST, original.context, model.context)
    sums, counts = score(original, model, tokens, context=window, progress=progress)
    return Quality.of_windows(sums, counts), sums[:, 3], counts


def _encoder_measure(
    original: ModelFiles, text: Path | None, limit: int | None, context: int | None, progress: Progress
) -> Callable[[ModelFiles], Measured]:
    from rbe_cli.layers.transformers_model import TransformersEncoder

    if text is None:
        raise RBEError(f"{original.name}: give a text with --text; each line of it is a text of its own")
    exact = TransformersEncoder.load(original)
    texts = sentences(original, text, min(context or LONGEST, exact.context))
    batches = list(by_length(spread(texts, limit or _SENTENCE_TOKENS)))
    answers = [exact.embed(batch) for batch in batches]

    def against(files: ModelFiles) -> Measured:
        model = TransformersEncoder.load(files)
        progress.phase("embedding lines", sum(map(len, batches)))
        far = []
        for answer, batch in zip(answers, batches, strict=True):
            far.append(turned(answer, model.embed(batch)))
            progress.advance(len(batch))
        sums = np.concatenate(far)
        return None, sums, np.ones(sums.size)

    return against
