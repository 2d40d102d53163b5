"""A transformers model, language model or encoder, whose linear layers tell what is multiplied with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from rbe_cli.calibration.observed import Inputs, Observer
from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.transformers_model import TransformersEncoder, TransformersModel, is_encoder, names_in


class ObservedTransformers:
    """Any model of torch's Linear and transformers' Conv1D.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    stored : set of str
        Names in the checkpoint.
    """

    def __init__(self, model: Any, stored: set[str]) -> None:
        self.model = model
        self._parameters = {
            name: parameter for full, parameter in model.named_parameters() for name in names_in(model, full, stored)
        }
        self.reads_lines = is_encoder(model.config.to_dict())
        self._modules: dict[str, Any] = {}
        for module_name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | Conv1D):
                for name in names_in(model, f"{module_name}.weight", stored):
                    self._modules[name] = module

    @property
    def context(self) -> int:
        """Positions at most."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def inputs(self) -> dict[str, Inputs]:
        """The weights of all linear layers that the checkpoint holds by themselves."""
        found = {}
        for name, module in self._modules.items():
            axis = 0 if isinstance(module, Conv1D) else 1
            found[name] = Inputs(int(module.weight.shape[axis]), axis)
        return found

    def read(self, tokens: Tokens, observers: Mapping[str, Observer]) -> None:
        """Run int64[texts, positions] through the model."""
        hooks = [self._modules[name].register_forward_pre_hook(_hook(seen)) for name, seen in observers.items()]
        try:
            with torch.inference_mode():
                ids = torch.from_numpy(np.ascontiguousarray(tokens))
                self.model(ids, **({} if self.reads_lines else {"use_cache": False}))
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def altered(self, name: str, values: NDArray[np.float32]) -> Iterator[None]:
        """Another value of a matrix as long as one is inside."""
        parameter = self._parameters[name]
        before = parameter.data
        parameter.data = torch.from_numpy(values)
        try:
            yield
        finally:
            parameter.data = before

    def answers(self, tokens: Tokens, first: int = 0) -> NDArray[np.float32]:
        """Logits, float32[texts, positions - first, vocabulary], or float32[texts, hidden] of an encoder."""
        if self.reads_lines:
            return TransformersEncoder(self.model).embed(tokens)
        return TransformersModel(self.model).logits(tokens, first)


def _hook(observer: Observer) -> Any:
    def call(_module: Any, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        observer(x.reshape(-1, x.shape[-1]).float().numpy())

    return call
