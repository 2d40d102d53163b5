"""The configuration of a GPT-2, from the `config.json` that transformers writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rbe_cli.errors import CorruptFile, RBEError
from rbe_cli.layers.ffn import ACTIVATIONS


@dataclass(frozen=True)
class GPT2Config:
    """Sizes and switches.

    Attributes
    ----------
    vocabulary, positions, hidden, layers, heads, inner : int
        `vocab_size`, `n_positions`, `n_embd`, `n_layer`, `n_head` and `n_inner` of config.json.
    epsilon : float
        Of the layer norms.
    activation : str
        A key of `ACTIVATIONS`.
    scaled : bool
        Scores are divided by the root of the head size.
    scaled_by_layer : bool
        Scores of layer i are also divided by i + 1.
    tied : bool
        The output matrix is the token embedding.
    """

    vocabulary: int = 50257
    positions: int = 1024
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    epsilon: float = 1e-5
    activation: str = "gelu_new"
    scaled: bool = True
    scaled_by_layer: bool = False
    tied: bool = True

    @classmethod
    def from_json(cls, config: dict[str, Any], where: str) -> GPT2Config:
        """Read a config.json; what it leaves out is as in GPT-2 small.

        Raises RBEError if it is another architecture, CorruptFile if it makes no sense.

        >>> GPT2Config.from_json({"model_type": "gpt2", "n_embd": 128, "n_head": 4}, "config.json").inner
        512
        """
        kind = config.get("model_type")
        if kind != "gpt2":
            raise RBEError(f"{where}: is of type {kind!r}; rbe's own layers run 'gpt2', others --engine transformers")
        activation = config.get("activation_function", cls.activation)
        if str(activation) not in ACTIVATIONS:
            raise RBEError(f"{where}: activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        hidden = config_count(config, "n_embd", cls.hidden, where)
        made = cls(
            vocabulary=config_count(config, "vocab_size", cls.vocabulary, where),
            positions=config_count(config, "n_positions", cls.positions, where),
            hidden=hidden,
            layers=config_count(config, "n_layer", cls.layers, where),
            heads=config_count(config, "n_head", cls.heads, where),
            inner=config_count(config, "n_inner", 4 * hidden, where),
            epsilon=_positive(config, "layer_norm_epsilon", cls.epsilon, where),
            activation=activation,
            scaled=config.get("scale_attn_weights", True) is True,
            scaled_by_layer=config.get("scale_attn_by_inverse_layer_idx", False) is True,
            tied=config.get("tie_word_embeddings", True) is True,
        )
        if made.hidden % made.heads:
            raise CorruptFile(f"{where}: {made.heads} heads do not divide a width of {made.hidden}")
        return made

    @property
    def head_size(self) -> int:
        """Elements of one head."""
        return self.hidden // self.heads


def config_count(config: dict[str, Any], key: str, default: int, where: str) -> int:
    """A number of things, of a config.json; the default if it says none. Raises CorruptFile."""
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int or not 0 < value < 1 << 31:
        raise CorruptFile(f"{where}: {key} is {value!r}, not a number of elements")
    return value


def _positive(config: dict[str, Any], key: str, default: float, where: str) -> float:
    value = config.get(key, default)
    if not isinstance(value, float | int) or not 0 < value < 1:
        raise CorruptFile(f"{where}: {key} is {value!r}")
    return float(value)
