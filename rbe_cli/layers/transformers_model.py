"""Compressed weights straight into a transformers model: any causal language model or encoder that library can build.

Needs the extra: pip install 'rbe-cli[transformers]'.

model = load_pretrained(Folder.open(Path("mini.rbe")))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rbe_cli import elements
from rbe_cli.container.folder import Folder
from rbe_cli.errors import RBEError, first_line
from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.model_files import ModelFiles

try:
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
except ImportError:
    raise RBEError("transformers models need torch and transformers: pip install 'rbe-cli[transformers]'") from None

#: Without this, transformers asks on a terminal whether to run the code that a configuration brings along.
_OWN_CODE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_pretrained(folder: Folder | Path, dtype: torch.dtype | None = None) -> Any:
    """Build the causal language model or the encoder a compressed folder holds and decode its weights into it.

    The model is made on torch's meta device, without memory for its parameters; then each tensor is decoded and
    becomes one, so that there is one copy of the weights, and of the tensor under way a second. Tied parameters are
    one tensor.

    Parameters
    ----------
    folder : Folder or Path
        What `rbe compress` wrote from a model's folder, `config.json` and all. No code but transformers' own is run.
    dtype : torch.dtype or None
        Of the parameters; None leaves each as the checkpoint had it.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, without gradients.

    Raises
    ------
    RBEError
        No config.json, an architecture transformers does not know, a tensor that is missing, has no place in the
        model or another shape there.
    """
    if isinstance(folder, Path):
        folder = Folder.open(folder)
    model = empty_model(ModelFiles(str(folder.path), folder=folder))
    slots = _slots(model)
    left = dict(slots)
    for name in folder.names():
        slot = slots.get(_name_in(model, name, slots))
        if slot is None:
            if name in _buffers(model):
                continue
            raise RBEError(f"{folder.path}: tensor {name!r} has no place in a {type(model).__name__}")
        if slot.filled_by is None:
            slot.fill(_tensor(folder, name, dtype), f"{folder.path}: tensor {name!r}", name)
        elif not slot.holds(_tensor(folder, name, dtype)):
            raise RBEError(f"{folder.path}: tensors {slot.filled_by!r} and {name!r} differ, but the model ties them")
        for place in slot.places:
            left.pop(place, None)
    if left:
        raise RBEError(f"{folder.path}: has no tensor {min(left)!r}, which a {type(model).__name__} needs")
    return model.eval()


def load_checkpoint(files: ModelFiles) -> Any:
    """The model of a checkpoint's folder, loaded by transformers itself, in float32. Raises RBEError."""
    config = files.file("config.json")
    if config is None:
        raise RBEError(f"{files.name}: no config.json beside the weights; give the model's whole folder")
    transformers.utils.logging.disable_progress_bar()  # commands have their own
    try:
        auto = _auto(transformers.AutoConfig.from_pretrained(config.parent, **_OWN_CODE))
        model = auto.from_pretrained(config.parent, use_safetensors=True, **_OWN_CODE)
    except Exception as error:  # the library raises whatever comes of a configuration
        raise RBEError(f"{files.name}: transformers cannot load it ({first_line(error)})") from None
    return model.float().eval()


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model that reads a text both ways, as BERT, and does not continue it."""
    return str(config.get("model_type")) in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder", False)


def _auto(config: Any) -> Any:
    """What builds the model of a configuration."""
    return transformers.AutoModel if is_encoder(config.to_dict()) else transformers.AutoModelForCausalLM


def empty_model(files: ModelFiles) -> Any:
    """The model of a `config.json`, its parameters on the meta device, its buffers computed. Raises RBEError."""
    files.json("config.json")
    path = files.file("config.json")
    assert path is not None
    try:
        config = transformers.AutoConfig.from_pretrained(path.parent, **_OWN_CODE)
        with _parameters_on_meta():
            return _auto(config).from_config(config, trust_remote_code=False)
    except Exception as error:  # the library raises whatever comes of a configuration
        raise RBEError(f"{path}: transformers cannot build this model ({first_line(error)})") from None


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that modules register meanwhile lose their memory at once; buffers, which no file holds, keep it."""
    register = torch.nn.Module.register_parameter

    def on_meta(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


@dataclass
class _Slot:
    """One parameter or buffer of a model and all the places it stands in.

    Attributes
    ----------
    places : dict
        Full name -> (module, attribute).
    filled_by : str or None
        Name of the tensor it was filled with.
    """

    shape: tuple[int, ...]
    places: dict[str, tuple[Any, str]]
    filled_by: str | None = None

    def fill(self, value: Any, where: str, name: str) -> None:
        """Put a tensor in all its places."""
        if tuple(value.shape) != self.shape:
            held, wanted = ("x".join(map(str, shape)) or "scalar" for shape in (tuple(value.shape), self.shape))
            raise RBEError(f"{where} is {held}, the model's is {wanted}")
        parameter = torch.nn.Parameter(value, requires_grad=False)
        for module, attribute in self.places.values():
            if attribute in module._parameters:
                module._parameters[attribute] = parameter
            else:
                module._buffers[attribute] = value
        self.filled_by = name

    def holds(self, value: Any) -> bool:
        """Whether it is filled with this."""
        module, attribute = next(iter(self.places.values()))
        return bool(torch.equal(getattr(module, attribute), value))


def _slots(model: Any) -> dict[str, _Slot]:
    """Name -> slot of everything a checkpoint of the model holds; tied names share a slot."""
    slots: dict[str, _Slot] = {}
    by_identity: dict[int, _Slot] = {}
    # Ties are made by name here, as not every model has made them on the meta device yet.
    model.tie_weights()
    for prefix, module in model.named_modules():
        held = [*module._parameters, *(name for name in module._buffers if name not in _transient(module))]
        for attribute in held:
            value = getattr(module, attribute)
            if value is None:
                continue
            name = f"{prefix}.{attribute}" if prefix else attribute
            slot = by_identity.setdefault(id(value), _Slot(tuple(value.shape), {}))
            slot.places[name] = (module, attribute)
            slots[name] = slot
    return slots


def _transient(module: Any) -> set[str]:
    """Buffers that no checkpoint holds."""
    names: set[str] = module._non_persistent_buffers_set
    return names


def _buffers(model: Any) -> set[str]:
    """Names of all buffers, with and without prefix: old checkpoints hold some that are computed now."""
    prefix = f"{model.base_model_prefix}."
    names = {name for name, _ in model.named_buffers()}
    return names | {name.removeprefix(prefix) for name in names}


def _name_in(model: Any, name: str, slots: dict[str, _Slot]) -> str:
    """The model's name of a tensor: checkpoints of the body alone lack its prefix, and the other way round."""
    prefix = f"{model.base_model_prefix}."
    return next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in slots), name)


def names_in(model: Any, name: str, stored: set[str]) -> list[str]:
    """What a checkpoint calls a parameter of the model: the names it has for it, tied ones too; often one or none."""
    parameter = model.get_parameter(name)
    names = [full for full, other in model.named_parameters(remove_duplicate=False) if other is parameter]
    prefix = f"{model.base_model_prefix}."
    return sorted({n for full in names for n in (full, prefix + full, full.removeprefix(prefix)) if n in stored})


def _tensor(folder: Folder, name: str, dtype: torch.dtype | None) -> Any:
    """A tensor of the folder as torch has it, without a copy unless the type changes."""
    values: NDArray[Any] = folder.tensor(name)
    if values.dtype == elements.FLOATS["BF16"]:
        tensor = torch.from_numpy(values.view(np.uint16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(values)
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


class _Loaded:
    """A transformers model in float32.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def load(cls, files: ModelFiles) -> Self:
        """From a compressed folder, by `load_pretrained`, or from a checkpoint's folder, by transformers itself."""
        if files.folder is not None:
            return cls(load_pretrained(files.folder, torch.float32))
        return cls(load_checkpoint(files))

    @property
    def context(self) -> int:
        """Positions at most."""
        return int(self.model.config.get_text_config().max_position_embeddings)


class TransformersModel(_Loaded):
    """A transformers causal language model as a `CausalModel`."""

    @property
    def vocabulary(self) -> int:
        """Number of tokens there are."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, tied ones once, and of buffers."""
        return sum(t.nbytes for group in (self.model.parameters(), self.model.buffers()) for t in group)

    def logits(self, tokens: Tokens, first: int = 0) -> NDArray[np.float32]:
        """int64[batch, positions] -> float32[batch, positions - first, vocabulary], of positions `first` on."""
        with torch.inference_mode():
            out = self.model(torch.from_numpy(np.ascontiguousarray(tokens)), use_cache=False).logits
        logits: NDArray[np.float32] = out[:, first:].float().numpy()
        return logits

    def continuation(self) -> TransformersText:
        """An empty text to grow."""
        return TransformersText(self)


class TransformersText:
    """One text that grows, its keys and values kept by transformers."""

    def __init__(self, model: TransformersModel) -> None:
        self._model = model
        self._past: Any = None
        self._length = 0

    def feed(self, tokens: Tokens) -> NDArray[np.float32]:
        """Read int64[n] more tokens, n > 0; gives the logits of the next, float32[vocabulary]."""
        self._length += tokens.size
        if self._length > self._model.context:
            raise RBEError(f"text is longer than the {self._model.context} positions there is room for")
        ids = torch.from_numpy(np.ascontiguousarray(tokens))[None]
        with torch.inference_mode():
            out = self._model.model(ids, past_key_values=self._past, use_cache=True)
        self._past = out.past_key_values
        logits: NDArray[np.float32] = out.logits[0, -1].float().numpy()
        return logits


class TransformersEncoder(_Loaded):
    """A transformers encoder: a text's vector is the mean of its last hidden states, of length 1."""

    def embed(self, tokens: Tokens) -> NDArray[np.float32]:
        """int64[texts, positions] -> float32[texts, hidden]."""
        with torch.inference_mode():
            hidden = self.model(torch.from_numpy(np.ascontiguousarray(tokens))).last_hidden_state
            embedded: NDArray[np.float32] = torch.nn.functional.normalize(hidden.mean(1).float(), dim=1).numpy()
        return embedded
