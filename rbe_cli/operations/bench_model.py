"""`rbe bench model`: what compression does to a language model, its speed and its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rbe_cli import models
from rbe_cli.errors import RBEError, UsageError
from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.engines import ENGINES, load_model, math_threads, warm_up
from rbe_cli.operations.model_quality import Estimate, Quality, compare
from rbe_cli.operations.model_speed import Memory, Speed, measure_memory, measure_speed
from rbe_cli.operations.model_text import LONGEST, read_text
from rbe_cli.operations.progress import Progress, Silent

_PROMPT, _GENERATED = 128, 48
#: Cache sizes measured by default, as parts of all decoded tiles.
_CACHE_PARTS = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes
    ----------
    name : str
        `reference, dense`, `compressed` ...
    cache_bytes : int or None
        Budget of the cache of decoded tiles; None where there is no such cache.
    """

    name: str
    cache_bytes: int | None
    speed: Speed
    memory: Memory


@dataclass(frozen=True)
class ModelBench:
    """What was measured.

    Attributes
    ----------
    reference, text : str
        Names of the original and of the text's file.
    bytes, reference_bytes : int
        Weights on disk, manifest included.
    are_bytes : bool
        Tokens are bytes, so that losses are also bits per byte.
    context : int
        Tokens of a window.
    variants : list of Variant
        Empty if only the quality was asked for.
    """

    reference: str
    text: str
    engine: str
    bytes: int
    reference_bytes: int
    are_bytes: bool
    context: int
    quality: Quality
    variants: list[Variant]

    def bits_per_byte(self, loss: Estimate) -> Estimate:
        """A loss of `quality`, or their difference, in bits per byte; NaN where tokens are not bytes."""
        return loss.scaled(1 / math.log(2) if self.are_bytes else math.nan)


def bench_model(
    path: str,
    *,
    base: Sequence[str] = (),
    reference: str | None = None,
    text: Path | None = None,
    engine: str = "numpy",
    limit: int | None = None,
    context: int | None = None,
    caches: Sequence[int] = (),
    quality_only: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> ModelBench:
    """Measure a compressed model against its original.

    Parameters
    ----------
    path : str
        A folder `rbe compress` wrote, or a checkpoint to be compared with the reference as it is.
    base : sequence of str
        The model it is an update of, if it is one; where that is one, too, its base, and so on.
    reference : str or None
        The original; by default what the manifest names, if it ships with rbe or is an existing path.
    text : Path or None
        By default the held-out text beside the model.
    engine : str
        One of `ENGINES`.
    limit : int or None
        Tokens of the text at most.
    context : int or None
        Tokens of a window; by default the model's, 1024 at most.
    caches : sequence of int
        Budgets of the tile cache in bytes; by default 0, 25, 50 and 100 % of the decoded tiles.
    quality_only : bool
        Leave speed and memory out.
    threads : int
        Of the linear algebra library, and of those that decode tiles.

    Raises
    ------
    RBEError, CorruptFile, UsageError
    """
    progress = progress or Silent()
    if engine not in ENGINES:
        raise UsageError(f"--engine must be {' or '.join(ENGINES)}, not {engine!r}")
    files = ModelFiles.open(path, base)
    reference = reference or default_reference(files)
    original = ModelFiles.open(reference)
    tokens = read_text(original if text is None and files.folder is None else files, text, limit)
    for each in (original, files):
        warm_up(each, engine)
    dense = load_model(original, engine)
    compressed = load_model(files, engine, cache_bytes=decoded_bytes(files), threads=threads)
    context = min(context or LONGEST, dense.context, compressed.context)
    with math_threads(threads):
        quality = compare(dense, compressed, tokens.tokens, context=context, progress=progress)
    variants: list[Variant] = []
    if not quality_only:
        del dense, compressed
        plans = [("reference, dense", original, None)] + [
            ("compressed", files, budget) for budget in _budgets(files, engine, caches)
        ]
        progress.phase("measuring speed and memory", len(plans))
        for name, each, budget in plans:
            variants.append(_variant(name, each, engine, budget, threads, tokens.tokens, context))
            progress.advance(1)
    return ModelBench(
        reference, tokens.name, engine, files.weight_bytes, original.weight_bytes, tokens.are_bytes, context,
        quality, variants,
    )  # fmt: skip


def default_reference(files: ModelFiles) -> str:
    """The original a folder was made from: a shipped model, or a path that exists and has the same weights.

    Raises RBEError if there is none.
    """
    if files.folder is None:
        raise RBEError(f"{files.name}: not compressed by rbe; name what to compare it with: --reference ORIGINAL")
    manifest = files.folder.manifest
    source = manifest.source
    if source not in models.NAMES and not Path(source).exists():
        raise RBEError(f"{files.name}: its source {source!r} is not here; name it with --reference ORIGINAL")
    original = ModelFiles.open(source).checkpoint
    held = {shard.relative: shard for shard in original.shards} if original else {}
    for file in manifest.sources:
        if file.path not in held or held[file.path].size != file.bytes or held[file.path].sha256() != file.sha256:
            raise RBEError(f"{files.name}: {source} is not what it was made from; name that with --reference ORIGINAL")
    return source


def decoded_bytes(files: ModelFiles) -> int:
    """Bytes a cache needs to hold every tile of a compressed folder."""
    if files.folder is None:
        return 0
    return sum(4 * tensor.elements for tensor in files.folder.manifest.tensors if tensor.lossy and not tensor.base)


def _budgets(files: ModelFiles, engine: str, caches: Sequence[int]) -> list[int | None]:
    if files.folder is None or engine != "numpy":
        return [None]
    return list(caches) or [int(part * decoded_bytes(files)) for part in _CACHE_PARTS]


def _variant(
    name: str, files: ModelFiles, engine: str, budget: int | None, threads: int, tokens: Tokens, context: int
) -> Variant:
    prompt = tokens[: max(1, min(_PROMPT, context // 2, tokens.size))]
    generated = max(1, min(_GENERATED, context - prompt.size))
    memory = measure_memory(files, engine, budget or 0, threads, prompt, generated)
    model = load_model(files, engine, cache_bytes=budget or 0, threads=threads)
    with math_threads(threads):
        return Variant(name, budget, measure_speed(model, prompt, generated), memory)
