"""Other coders of weight matrices, each as its own package does it: encode, count all bytes, decode.

Every one is timed on one core, and counts what its decoder needs: packed indices, scales, zero points, code tables.
What is not installed is left out, and the page says so.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

#: Weights that share a scale in NF4 and HQQ.
GROUP = 64


@dataclass(frozen=True)
class Peer:
    """A coder of one matrix at one setting.

    Attributes
    ----------
    name : str
    encode : callable
        float32[rows, columns] -> (what `decode` takes, number of bytes).
    decode : callable
        Gives float32 of the same number of elements.
    """

    name: str
    encode: Callable[[np.ndarray], tuple[Any, int]]
    decode: Callable[[Any], np.ndarray]


def gguf(kind: str) -> Peer:
    """A format of llama.cpp by the gguf package's own quantiser; rows that do not fit its blocks are joined first."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    qtype = GGMLQuantizationType[kind]
    block = GGML_QUANT_SIZES[qtype][0]

    def encode(w: np.ndarray) -> tuple[Any, int]:
        packed = quants.quantize(w if w.shape[1] % block == 0 else w.reshape(-1, block), qtype)
        return packed, packed.nbytes

    return Peer(f"llama.cpp {kind} (gguf)", encode, lambda packed: quants.dequantize(packed, qtype))


def nf4() -> Peer:
    """bitsandbytes' NF4 with double quantisation. The 16 and 256 entries of its fixed code tables are not counted."""
    import bitsandbytes.functional as library
    import torch

    def encode(w: np.ndarray) -> tuple[Any, int]:
        packed, state = library.quantize_4bit(
            torch.from_numpy(w), blocksize=GROUP, quant_type="nf4", compress_statistics=True
        )
        parts = (packed, state.absmax, state.state2.absmax, state.offset)
        return (packed, state), sum(part.numel() * part.element_size() for part in parts)

    return Peer("bitsandbytes NF4, double quant", encode, lambda coded: library.dequantize_4bit(*coded).numpy())


def hqq(bits: int) -> Peer:
    """HQQ with its optimiser; scales and zeros in float16, as it runs."""
    import torch
    from hqq.core.quantize import Quantizer

    def encode(w: np.ndarray) -> tuple[Any, int]:
        packed, meta = Quantizer.quantize(
            torch.from_numpy(w), nbits=bits, group_size=GROUP, axis=1, optimize=True, device="cpu"
        )
        size = packed.numel() * packed.element_size()
        for key in ("scale", "zero"):
            half = meta[key].half()
            size += half.numel() * half.element_size()
            meta[key] = half.float()
        return (packed, meta), size

    return Peer(f"HQQ {bits} bit", encode, lambda coded: Quantizer.dequantize(*coded).float().numpy())


def nncodec(qp: int, lambda_scale: float) -> Peer:
    """NNCodec (ISO/IEC 15938-17) with dependent quantisation; the whole bit stream is counted."""
    _without_framework()
    from nncodec import nnc

    def encode(w: np.ndarray) -> tuple[Any, int]:
        stream = nnc.compress(
            {"0": w}, qp=qp, use_dq=True, row_skipping=True, param_opt=True, lambda_scale=lambda_scale,
            bitstream_path=None, return_bitstream=True,
        )  # fmt: skip
        return stream, len(stream)

    name = f"NNCodec, qp {qp}" + (", RDOQ" if lambda_scale else "")
    return Peer(name, encode, lambda stream: np.asarray(nnc.decompress(stream)["0"]))


#: Quality parameter of NNCodec per bit: its step doubles every 4.
_QP_PER_BIT = 4


def nncodec_qps(w: np.ndarray, bits: float) -> Sequence[int]:
    """The quality parameters whose rate is about `bits`: one step is a quarter bit."""
    rms = float(np.sqrt(np.mean(w.astype(np.float64) ** 2)))
    # White Gaussian noise of RMS 1 takes 3.24 bits at -8.
    middle = round(-8 + _QP_PER_BIT * (3.24 - bits + math.log2(rms)))
    return (middle - 1, middle, middle + 1)


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Framework(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for nncodec.framework, which loads data sets and models of torchvision and codes nothing."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        ours = name.startswith("nncodec.framework")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


def _without_framework() -> None:
    if not any(isinstance(finder, _Framework) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Framework())


#: Package -> its peers of a fixed rate.
_FIXED: dict[str, tuple[Callable[[], Peer], ...]] = {
    "gguf": tuple((lambda kind=kind: gguf(kind)) for kind in ("MXFP4", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")),
    "bitsandbytes": (nf4,),
    "hqq": tuple((lambda bits=bits: hqq(bits)) for bits in (2, 3, 4, 8)),
}


def fixed_rate_peers() -> Iterator[Peer]:
    """Those of a rate of their own that are installed."""
    for package, makers in _FIXED.items():
        if package in installed():
            yield from (maker() for maker in makers)


def installed() -> dict[str, str]:
    """Package -> version of the peers that are here."""
    found = {}
    for package in ("gguf", "bitsandbytes", "hqq", "nncodec", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
