"""What `rbe bench layers` measures: the layers of the guide, on weights of its own model, on white ones and real ones.

The targets are those of the guide (`docs/layers.md`), at the ratios it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbe_cli.checkpoint.reader import Checkpoint
from rbe_cli.layers.attention import KeyValueCache, RBEAttention
from rbe_cli.layers.embedding import RBEEmbedding
from rbe_cli.layers.ffn import ACTIVATIONS, RBEFFN, gelu_new
from rbe_cli.layers.fused_forward import FusedForwardPass
from rbe_cli.layers.layer_norm import RBELayerNorm
from rbe_cli.layers.linear import RBELinear
from rbe_cli.layers.weight_generator import WeightGenerator
from rbe_cli.layers.weights import WeightMatrix
from rbe_cli.operations.bench_sources import guide_model
from rbe_cli.operations.layer_weights import Matrix, Weights, weights_of

Call = Callable[[], object]
#: Positions already seen when attention is timed, and ids and tokens of a batch.
SEEN, IDS, TOKENS = 64, 1024, 64
_POSITIONS = 4096


@dataclass(frozen=True)
class Target:
    """What the guide asks of a layer; None where it asks nothing.

    Attributes
    ----------
    ratio : float
        Also what the layer is compressed to.
    nanoseconds : float
        Of a call, or of a `unit` of it.
    rmse : float
    smaller : float
        Part of the dense bytes that need not be in memory.
    block_bytes : float
        Of the file, for each block.
    """

    ratio: float
    nanoseconds: float | None = None
    rmse: float | None = None
    smaller: float | None = None
    block_bytes: float | None = None


@dataclass(frozen=True)
class Subject:
    """One layer on one source.

    Attributes
    ----------
    layer, source : str
        Its name in the guide; `structured`, `white` or a checkpoint's.
    matrices : dict
        Name -> float32[rows, columns]; none for what is not compressed.
    block : int
    ready : callable
        From the matrices, dense or compressed, and a number of tokens to the call that is timed.
    unit : str
        `call`, `token` or `element`: what the target's time is of.
    units : int
        How many of these a call has.
    numbers : int
        That a call returns.
    tokens, batch : int
        Of the call that is timed, and of the one whose parallel efficiency is taken; `batch` 0 takes none.
    wishes : dict
        For `compress_array` where there is no coded residual.
    """

    layer: str
    source: str
    matrices: Mapping[str, Matrix]
    block: int
    target: Target
    ready: Callable[[Sequence[WeightMatrix], int], Call]
    unit: str
    units: int
    numbers: int
    tokens: int = 1
    batch: int = 0
    wishes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """768x3072, and how many of these."""
        shapes = ["x".join(map(str, matrix.shape)) for matrix in self.matrices.values()]
        return ", ".join(f"{shapes.count(s)} of {s}" if shapes.count(s) > 1 else s for s in dict.fromkeys(shapes))


def guide_subjects(source: str, hidden: int, vocabulary: int) -> list[Subject]:
    """The guide's configurations, for `structured` or `white` weights, at its sizes if hidden is 768."""
    small, large = max(hidden // 6, 4), max(hidden // 3, 4)

    def weights(rows: int, columns: int, block: int, seed: int) -> Matrix:
        if source == "structured":
            return guide_model(rows, columns, block, seed=seed)
        return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)

    square = [weights(hidden, hidden, small, seed) for seed in range(4)]
    model = Weights(
        ("weight", square[0]),
        ("table", weights(vocabulary, hidden, large, 4)),
        tuple(zip(("query", "key", "value", "output"), square, strict=True)),
        (("up", weights(4 * hidden, hidden, large, 5)), ("down", weights(hidden, 4 * hidden, large, 6))),
        heads=max(hidden // 64, 1),
    )
    wishes: dict[str, Any] = {"transform": "dct"} if source == "structured" else {"transform": "lowrank"}
    subjects = _subjects(source, model, (small, large), wishes)
    # The guide's block of 64 x 64 in 100 bytes is a ratio of 164.
    fine = max(hidden // 12, 4)
    fine_wishes = wishes | {"block": fine}
    target = Target(4 * fine * fine / 100, block_bytes=100, nanoseconds=10_000)
    matrix = weights(hidden, hidden, fine, 7)
    subjects.append(_linear(f"RBELinear, block {fine}", source, ("weight", matrix), fine, target, fine_wishes, False))
    return subjects


def model_subjects(checkpoint: Checkpoint) -> list[Subject]:
    """The same layers of a checkpoint, as far as it has them: the first of each kind, at its own sizes."""
    return _subjects(checkpoint.name, weights_of(checkpoint), (128, 256), {})


def _subjects(source: str, model: Weights, blocks: tuple[int, int], wishes: dict[str, Any]) -> list[Subject]:
    small, large = blocks
    name, matrix = model.linear
    rows, columns = matrix.shape
    hidden = columns if not model.in_by_out else rows
    near, far = wishes | {"block": small}, wishes | {"block": large}
    subjects = [
        Subject(
            "WeightGenerator", source, {name: matrix}, small, Target(100, 25), _generate, "element", _POSITIONS,
            _POSITIONS, wishes=near,
        ),
        Subject(
            "FusedForwardPass", source, {name: matrix}, small, Target(100, 150), _multiply, "element", rows, rows,
            batch=TOKENS, wishes=near,
        ),
        _linear("RBELinear", source, model.linear, small, Target(100, 10_000, 0.1), near, model.in_by_out),
    ]  # fmt: skip
    if model.table:
        subjects += _embeddings(source, model.table, large, far)
    if model.attention:
        subjects.append(
            Subject(
                "RBEAttention", source, dict(model.attention), small, Target(100, 50_000, 0.1),
                _attention(model), "call", 1, hidden, batch=32, wishes=near,
            )
        )  # fmt: skip
    if model.ffn:
        for (part, weight), layer in zip(model.ffn, ("RBEFFN_up", "RBEFFN_down"), strict=False):
            target = Target(200, None, 0.1, 0.95)
            subjects.append(_linear(layer, source, (part, weight), large, target, far, model.in_by_out))
        subjects.append(
            Subject(
                "RBEFFN", source, dict(model.ffn), large, Target(200, 100_000, 0.1, 0.95), _ffn(model), "call", 1,
                hidden, batch=TOKENS, wishes=far,
            )
        )  # fmt: skip
    norm = Target(1, 1000)
    subjects.append(
        Subject("RBELayerNorm", source, {}, 0, norm, _norm(hidden), "token", TOKENS, TOKENS * hidden, TOKENS)
    )
    return subjects


def _linear(
    layer: str, source: str, named: tuple[str, Matrix], block: int, target: Target, wishes: dict[str, Any], turned: bool
) -> Subject:
    name, matrix = named
    outputs = matrix.shape[1] if turned else matrix.shape[0]

    def ready(matrices: Sequence[WeightMatrix], tokens: int) -> Call:
        linear = RBELinear(matrices[0], in_by_out=turned)
        x = _normal(tokens, linear.inputs)
        return lambda: linear(x)

    return Subject(
        layer, source, {name: matrix}, block, target, ready, "call", 1, outputs, batch=TOKENS, wishes=wishes
    )  # fmt: skip


def _embeddings(source: str, named: tuple[str, Matrix], block: int, wishes: dict[str, Any]) -> list[Subject]:
    """As the source is coded best, and with 8 coordinates a row, which are fast whatever the weights."""
    name, table = named
    entries, hidden = table.shape

    def ready(matrices: Sequence[WeightMatrix], tokens: int) -> Call:
        embedding = RBEEmbedding(matrices[0])
        ids = np.random.default_rng(0).integers(0, entries, tokens)
        return lambda: embedding(ids)

    target = Target(200, 100, 0.05, 0.9)
    few = wishes | {"transform": "lowrank", "rank": 8}
    kinds = [("RBEEmbedding", wishes)] if wishes.get("transform") != "lowrank" else []
    kinds.append(("RBEEmbedding, 8 coordinates", few))
    size = IDS * hidden
    return [
        Subject(layer, source, {name: table}, block, target, ready, "token", IDS, size, IDS, IDS, own)
        for layer, own in kinds
    ]


def _generate(matrices: Sequence[WeightMatrix], tokens: int) -> Call:
    """Some thousand random positions of the first block."""
    del tokens
    generator = WeightGenerator(matrices[0])
    height, width = generator.layout.shape(0)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, height, _POSITIONS), rng.integers(0, width, _POSITIONS)
    return lambda: generator(0, rows, columns)


def _multiply(matrices: Sequence[WeightMatrix], tokens: int) -> Call:
    forward = FusedForwardPass(matrices[0])
    x = _normal(tokens, forward.inputs)
    return lambda: forward(x)


def _attention(model: Weights) -> Callable[[Sequence[WeightMatrix], int], Call]:
    def ready(matrices: Sequence[WeightMatrix], tokens: int) -> Call:
        """So many texts side by side, one new position each against SEEN."""
        linears = [RBELinear(matrix, in_by_out=model.in_by_out) for matrix in matrices]
        attention = RBEAttention(linears[:-1], linears[-1], model.heads)
        hidden = linears[-1].inputs
        size = hidden // model.heads
        cache = KeyValueCache(tokens, model.heads, SEEN + 1, size)
        cache.append(_normal(tokens, model.heads, SEEN, size), _normal(tokens, model.heads, SEEN, size))
        x = _normal(tokens, 1, hidden)

        def call() -> object:
            cache.length = SEEN
            return attention(x, cache)

        return call

    return ready


def _ffn(model: Weights) -> Callable[[Sequence[WeightMatrix], int], Call]:
    def ready(matrices: Sequence[WeightMatrix], tokens: int) -> Call:
        up, down, *gate = (RBELinear(matrix, in_by_out=model.in_by_out) for matrix in matrices)
        ffn = RBEFFN(up, down, ACTIVATIONS.get(model.activation, gelu_new), gate[0] if gate else None)
        x = _normal(tokens, up.inputs)
        return lambda: ffn(x)

    return ready


def _norm(hidden: int) -> Callable[[Sequence[WeightMatrix], int], Call]:
    def ready(matrices: Sequence[WeightMatrix], tokens: int) -> Call:
        del matrices
        norm = RBELayerNorm(_normal(hidden), _normal(hidden), 1e-5)
        x = _normal(tokens, hidden)
        return lambda: norm(x)

    return ready


def _normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)
