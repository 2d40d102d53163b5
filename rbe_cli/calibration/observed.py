"""Models whose weights tell what is multiplied with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.checkpoint_weights import CheckpointWeights
from rbe_cli.layers.gpt2 import GPT2
from rbe_cli.layers.gpt2_config import GPT2Config
from rbe_cli.layers.model_files import ModelFiles

#: Called with float32[n, inputs], the inputs of one weight for n tokens, before they are multiplied.
Observer = Callable[[NDArray[np.float32]], None]


@dataclass(frozen=True)
class Inputs:
    """What goes into one weight.

    Attributes
    ----------
    channels : int
    axis : int
        0 if the weight is stored in x out, 1 if out x in.
    """

    channels: int
    axis: int


class ObservedModel(Protocol):
    """A model that reads text and lets others look on."""

    @property
    def context(self) -> int:
        """Positions at most."""

    @property
    def reads_lines(self) -> bool:
        """It is an encoder: a text is one line, not a stretch of a long text."""

    def inputs(self) -> dict[str, Inputs]:
        """Every weight that can be observed, by the checkpoint's name."""

    def read(self, tokens: Tokens, observers: Mapping[str, Observer]) -> None:
        """Run int64[texts, positions] through the model; the weights named in `observers` call them."""

    def altered(self, name: str, values: NDArray[np.float32]) -> AbstractContextManager[None]:
        """Another value of a matrix, by the checkpoint's name, as long as one is inside."""

    def answers(self, tokens: Tokens, first: int = 0) -> NDArray[np.float32]:
        """What the model makes of int64[texts, positions]: logits of positions `first` on, float32[texts, positions -
        first, vocabulary], or a vector of length 1 for each text, float32[texts, hidden].
        """


class ObservedGPT2:
    """The project's own GPT-2."""

    reads_lines = False

    def __init__(self, files: ModelFiles) -> None:
        assert files.checkpoint is not None
        self._weights = CheckpointWeights(files.checkpoint)
        config = GPT2Config.from_json(files.json("config.json"), f"{files.name}: config.json")
        self.model = GPT2(config, self._weights, files.name)

    @property
    def context(self) -> int:
        """Positions at most."""
        return self.model.context

    def inputs(self) -> dict[str, Inputs]:
        """All matrices; the token table as the output head, whose inputs run along its columns."""
        return {name: Inputs(layer.inputs, 0 if layer.in_by_out else 1) for name, layer in self.model.linears.items()}

    def read(self, tokens: Tokens, observers: Mapping[str, Observer]) -> None:
        """Run int64[texts, positions] through the model."""
        for name, layer in self.model.linears.items():
            layer.observer = observers.get(name)
        try:
            self.model.logits(tokens)
        finally:
            for layer in self.model.linears.values():
                layer.observer = None

    @contextmanager
    def altered(self, name: str, values: NDArray[np.float32]) -> Iterator[None]:
        """Another value of a matrix as long as one is inside."""
        matrix = self._weights.matrix(name)
        before, matrix.values = matrix.values, values
        try:
            yield
        finally:
            matrix.values = before

    def answers(self, tokens: Tokens, first: int = 0) -> NDArray[np.float32]:
        """Logits, float32[texts, positions - first, vocabulary]."""
        return self.model.logits(tokens, first)


def observe(files: ModelFiles) -> ObservedModel:
    """The model of a checkpoint: GPT-2 by the project's own layers, anything else by transformers. Raises RBEError."""
    if files.json("config.json").get("model_type") == "gpt2":
        return ObservedGPT2(files)
    # The first says what to install if torch is missing.
    from rbe_cli.layers.transformers_model import load_checkpoint  # isort: split
    from rbe_cli.calibration.observed_transformers import ObservedTransformers

    assert files.checkpoint is not None
    return ObservedTransformers(load_checkpoint(files), {info.name for _, info in files.checkpoint.tensors})
