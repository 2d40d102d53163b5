"""Compile every kernel of the layers, with the types it is used with, before anything is timed."""

from __future__ import annotations

import numpy as np

from rbe_cli.layers.attention import KeyValueCache, RBEAttention
from rbe_cli.layers.encoded import compress_array
from rbe_cli.layers.ffn import gelu
from rbe_cli.layers.layer_norm import RBELayerNorm
from rbe_cli.layers.linear import RBELinear
from rbe_cli.layers.weight_generator import WeightGenerator
from rbe_cli.layers.weight_mapper import open_matrix
from rbe_cli.layers.weights import DenseMatrix


def compile_layers() -> None:
    """Run every kind of layer once on next to nothing."""
    t = np.linspace(0, 1, 40, dtype=np.float32)
    w = np.sin(5 * t[:, None] + 3 * t) + 1e-3 * np.cos(900 * t[:, None] * t)
    one, many = np.ones((1, 40), np.float32), np.ones((8, 40), np.float32)
    for transform in ("lowrank", "dct"):
        matrix = open_matrix(compress_array(w, bits=4.0, structure_only=True, transform=transform, block=16))
        for x in (one, many):
            matrix.times(x)
            matrix.times_transposed(x)
        matrix.take(np.arange(3))
        WeightGenerator(matrix).at(np.arange(3), np.arange(3))
    gelu(one)
    norm = RBELayerNorm(np.ones(40, np.float32), np.ones(40, np.float32), 1e-5)
    dense = RBELinear(DenseMatrix(w))
    RBEAttention([dense] * 3, dense, 2)(norm(one[None]), KeyValueCache(1, 2, 1, 20))
