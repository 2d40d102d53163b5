"""What can run a model: rbe's own layers in numpy, or transformers in torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from threadpoolctl import threadpool_limits

from rbe_cli.errors import UsageError
from rbe_cli.layers.causal_model import CausalModel
from rbe_cli.layers.model_files import ModelFiles

#: `numpy` runs GPT-2 from compressed tiles; `transformers` any causal model, its weights decoded when it is loaded.
ENGINES = ("numpy", "transformers")


def load_model(files: ModelFiles, engine: str, *, cache_bytes: int = 0, threads: int = 1) -> CausalModel:
    """A model ready to run. `cache_bytes` and `threads` are for `numpy` and compressed weights alone.

    Raises RBEError if the engine cannot run it, UsageError for an engine that does not exist.
    """
    if engine == "numpy":
        from rbe_cli.layers.gpt2 import GPT2

        return GPT2.load(files, cache_bytes=cache_bytes, threads=threads)
    if engine == "transformers":
        from rbe_cli.layers.transformers_model import TransformersModel

        return TransformersModel.load(files)
    raise UsageError(f"--engine must be {' or '.join(ENGINES)}, not {engine!r}")


def warm_up(files: ModelFiles, engine: str) -> None:
    """Import and compile what an engine needs to run a model, so that it counts neither as time nor as memory."""
    if engine == "transformers":
        from rbe_cli.layers.transformers_model import empty_model

        empty_model(files)
    if files.folder is not None:
        from rbe_cli.codec.warm_up import compile_decoding

        compile_decoding()
    if engine == "numpy":
        from rbe_cli.layers.warm_up import compile_layers

        compile_layers()
    square = np.ones((64, 64), np.float32)
    np.tanh(square @ square)


@contextmanager
def math_threads(threads: int) -> Iterator[None]:
    """Let the linear algebra libraries use so many threads meanwhile, as many as decode tiles: speeds are per core."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(threads)
    try:
        with threadpool_limits(limits=threads, user_api="blas"):
            yield
    finally:
        if torch:
            torch.set_num_threads(before)
