"""A transformers model, language model or encoder, whose linear layers tell what is multiplied with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from rbe_cli.calibration.observed import Inputs, Observer
from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.transformers_model import is_encoder, names_in


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
        self.reads_lines = is_encoder(model.config)
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


def _hook(observer: Observer) -> Any:
    def call(_module: Any, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        observer(x.reshape(-1, x.shape[-1]).float().numpy())

    return call
