"""GPT-2 (Radford et al., 2019), made of the layers; its weights dense or compressed.

model = GPT2.load(ModelFiles.open("mini.rbe"), cache_bytes=1 << 20)
logits = model.logits(tokens)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbe_cli.errors import RBEError
from rbe_cli.layers.attention import KeyValueCache, RBEAttention
from rbe_cli.layers.causal_model import Tokens
from rbe_cli.layers.checkpoint_weights import CheckpointWeights
from rbe_cli.layers.embedding import RBEEmbedding
from rbe_cli.layers.ffn import ACTIVATIONS, RBEFFN
from rbe_cli.layers.gpt2_config import GPT2Config
from rbe_cli.layers.layer_norm import RBELayerNorm
from rbe_cli.layers.linear import RBELinear
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.layers.tile_cache import TileCache
from rbe_cli.layers.weight_mapper import WeightMapper
from rbe_cli.layers.weights import WeightSource

#: What transformers' GPT2LMHeadModel puts before the names of its body; the files on the hub do not have it.
_PREFIX = "transformer."


@dataclass(frozen=True)
class Block:
    """One transformer block: x + attention(norm(x)), then x + ffn(norm(x))."""

    attention_norm: RBELayerNorm
    attention: RBEAttention
    ffn_norm: RBELayerNorm
    ffn: RBEFFN

    def __call__(self, x: NDArray[np.float32], cache: KeyValueCache | None) -> NDArray[np.float32]:
        """float32[batch, positions, hidden] -> the same shape."""
        x = x + self.attention(self.attention_norm(x), cache)
        x += self.ffn(self.ffn_norm(x))
        return x

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.attention_norm.nbytes + self.attention.nbytes + self.ffn_norm.nbytes + self.ffn.nbytes


class GPT2:
    """A GPT-2 language model; a `CausalModel`.

    Parameters
    ----------
    config : GPT2Config
    source : WeightSource
        With the names of transformers' GPT2LMHeadModel, with or without `transformer.` before them.
    where : str
        What the weights are from, for messages.

    Raises
    ------
    RBEError
        If a tensor is missing or has another shape than the configuration says.
    """

    def __init__(self, config: GPT2Config, source: WeightSource, where: str = "model") -> None:
        self.config = config
        self.tiles = source.cache if isinstance(source, WeightMapper) else TileCache(0)
        tensors = _Tensors(source, where)
        hidden, inner = config.hidden, config.inner
        self.tokens = tensors.embedding("wte", config.vocabulary, hidden)
        self.positions = tensors.embedding("wpe", config.positions, hidden)
        self.blocks = [
            Block(
                tensors.norm(f"h.{i}.ln_1", config),
                RBEAttention(
                    [tensors.linear(f"h.{i}.attn.c_attn", hidden, 3 * hidden)],
                    tensors.linear(f"h.{i}.attn.c_proj", hidden, hidden),
                    config.heads,
                    (1 / math.sqrt(config.head_size) if config.scaled else 1.0)
                    / (i + 1 if config.scaled_by_layer else 1),
                ),
                tensors.norm(f"h.{i}.ln_2", config),
                RBEFFN(
                    tensors.linear(f"h.{i}.mlp.c_fc", hidden, inner),
                    tensors.linear(f"h.{i}.mlp.c_proj", inner, hidden),
                    ACTIVATIONS[config.activation],
                ),
            )
            for i in range(config.layers)
        ]
        self.norm = tensors.norm("ln_f", config)
        self.head = tensors.head("wte" if config.tied else "lm_head", config.vocabulary, hidden)
        #: Every linear layer by the name of its weight.
        self.linears = tensors.linears

    @classmethod
    def load(cls, files: ModelFiles, *, cache_bytes: int = 0, threads: int = 1) -> GPT2:
        """From a compressed folder, which stays compressed, or from a checkpoint, which is held as float32.

        `cache_bytes` and `threads` are those of `WeightMapper`.
        """
        config = GPT2Config.from_json(files.json("config.json"), f"{files.name}: config.json")
        if files.folder is not None:
            return cls(config, WeightMapper(files.folder, cache_bytes, threads), files.name)
        assert files.checkpoint is not None
        return cls(config, CheckpointWeights(files.checkpoint), files.name)

    @property
    def context(self) -> int:
        """Positions at most."""
        return self.config.positions

    @property
    def vocabulary(self) -> int:
        """Number of tokens there are."""
        return self.config.vocabulary

    @property
    def nbytes(self) -> int:
        """Bytes held: weights, compressed where they are, and the decoded tiles in the cache."""
        tables = self.tokens.nbytes + self.positions.nbytes + self.norm.nbytes
        if self.head.weight is not self.tokens.table:
            tables += self.head.nbytes
        return tables + sum(block.nbytes for block in self.blocks) + self.tiles.held

    # Weights may be as large as they like; what they make is then not finite, which is no matter for a warning.
    @np.errstate(all="ignore")
    def hidden(self, tokens: Tokens, caches: list[KeyValueCache] | None = None) -> NDArray[np.float32]:
        """The last layer's output after its norm: int64[batch, positions] -> float32[batch, positions, hidden].

        With caches, the tokens stand after those the caches have seen. Raises RBEError for a text that is too long or
        a token that does not exist.
        """
        past = caches[0].length if caches else 0
        if past + tokens.shape[1] > self.config.positions:
            raise RBEError(
                f"text of {past + tokens.shape[1]} tokens is longer than the model's {self.config.positions} positions"
            )
        x = self.tokens(tokens) + self.positions(np.arange(past, past + tokens.shape[1]))
        for i, block in enumerate(self.blocks):
            x = block(x, caches[i] if caches else None)
        return self.norm(x)

    @np.errstate(all="ignore")
    def logits(self, tokens: Tokens, first: int = 0) -> NDArray[np.float32]:
        """int64[batch, positions] -> float32[batch, positions - first, vocabulary], of positions `first` on."""
        return self.head(self.hidden(tokens)[:, first:])

    def continuation(self) -> GPT2Text:
        """An empty text to grow."""
        return GPT2Text(self)


class GPT2Text:
    """One text that grows; the keys and values of what was read are kept.

    Parameters
    ----------
    model : GPT2
    """

    def __init__(self, model: GPT2) -> None:
        self.model = model
        config = model.config
        self.caches = [KeyValueCache(1, config.heads, config.positions, config.head_size) for _ in range(config.layers)]

    @np.errstate(all="ignore")
    def feed(self, tokens: Tokens) -> NDArray[np.float32]:
        """Read int64[n] more tokens, n > 0; gives the logits of the next, float32[vocabulary]."""
        return self.model.head(self.model.hidden(tokens[None], self.caches)[0, -1])

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values, for the whole context."""
        return sum(cache.nbytes for cache in self.caches)


class _Tensors:
    """Layers by name from a source, their shapes checked."""

    def __init__(self, source: WeightSource, where: str) -> None:
        self.source = source
        self.where = where
        self.shapes = source.shapes()
        self.linears: dict[str, RBELinear] = {}

    def embedding(self, layer: str, entries: int, hidden: int) -> RBEEmbedding:
        name = self._name(f"{layer}.weight", (entries, hidden))
        return RBEEmbedding(self.source.matrix(name), f"{self.where}: tensor {name!r}")

    def linear(self, layer: str, inputs: int, outputs: int) -> RBELinear:
        bias = self.source.vector(self._name(f"{layer}.bias", (outputs,)))
        name = self._name(f"{layer}.weight", (inputs, outputs))
        self.linears[name] = RBELinear(self.source.matrix(name), bias, in_by_out=True)
        return self.linears[name]

    def head(self, layer: str, vocabulary: int, hidden: int) -> RBELinear:
        name = self._name(f"{layer}.weight", (vocabulary, hidden))
        self.linears[name] = RBELinear(self.source.matrix(name), None, in_by_out=False)
        return self.linears[name]

    def norm(self, layer: str, config: GPT2Config) -> RBELayerNorm:
        gamma, beta = (
            self.source.vector(self._name(f"{layer}.{part}", (config.hidden,))) for part in ("weight", "bias")
        )
        return RBELayerNorm(gamma, beta, config.epsilon)

    def _name(self, name: str, shape: tuple[int, ...]) -> str:
        found = next((full for full in (_PREFIX + name, name) if full in self.shapes), None)
        if found is None:
            raise RBEError(f"{self.where}: has no tensor {name!r} (with or without {_PREFIX!r} before it)")
        if self.shapes[found] != shape:
            held = "x".join(map(str, self.shapes[found]))
            raise RBEError(
                f"{self.where}: tensor {found!r} is {held}, the configuration says {'x'.join(map(str, shape))}"
            )
        return found
