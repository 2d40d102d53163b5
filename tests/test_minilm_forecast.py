"""What a forecast is told of real matrices, against what the encoder finds."""

from __future__ import annotations

import importlib.util
import math

import pytest

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.codec.choice.wish import Wish, reference_error
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.structure.components import sketch_components
from rbe_cli.codec.tensor_codec import prepare
from tests.test_minilm import PACKAGE, model_folder

pytestmark = [
    pytest.mark.minilm,
    pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed (make minilm)"),
]
LAYERS = (0, 2, 5)


def test_a_sketch_of_every_third_row_says_what_low_rank_gains() -> None:
    """To 0.05 dB, root mean square, where that is less than 0.6 dB."""
    checkpoint = open_checkpoint(model_folder() / "model.safetensors")
    shard, error = checkpoint.shards[0], reference_error(4.0, None)
    wrong = []
    for tensor in shard.tensors:
        if len(tensor.shape) < 2 or not any(f"layer.{layer}." in tensor.name for layer in LAYERS):
            continue
        matrix = Matrix(shard.raw(tensor), tensor.dtype, *tensor.shape)
        choice = prepare(matrix, Shaping(8, 8, geometric=True), Wish("auto", 64, 5, error))
        assert choice is not None
        gain = choice.gain_db if choice.name == "lowrank" else 0.0
        some = Matrix.of(matrix.whole()[:: max(1, tensor.shape[0] // 500)])
        sketch = sketch_components(some, error, tensor.shape[0])
        if gain < 0.6:
            wrong.append(max(sketch.gain(tensor.elements) if sketch else 0.0, 0.0) - gain)
    assert len(wrong) == 6 * len(LAYERS) - 1
    assert math.sqrt(sum(each**2 for each in wrong) / len(wrong)) < 0.05
