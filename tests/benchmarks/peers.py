"""Other data-free quantisers, each run as its own package does it, and the real size of the file it would ship.

All quantise the same tensors: those of two dimensions. GPT-2's Conv1D weights are turned to out x in before, as
llama.cpp's converter does, so that a group of weights shares an output. Vectors stay float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]
#: Decoded tensors in the original's layout, and the bytes of the file that holds them.
Result = tuple[Tensors, int]

#: Elements that share a scale in NF4 and HQQ.
GROUP = 64


def is_matrix(tensor: np.ndarray) -> bool:
    """Whether a peer quantises it."""
    return tensor.ndim == 2 and tensor.dtype.kind != "i"


def _turned(name: str) -> bool:
    return ".c_" in name


def _each_matrix(tensors: Tensors, quantise: Callable[[str, np.ndarray], np.ndarray]) -> Tensors:
    """Replace each matrix, given out x in, by what `quantise` decodes it to."""
    decoded = {}
    for name, tensor in tensors.items():
        if not is_matrix(tensor):
            decoded[name] = tensor
            continue
        rows = np.ascontiguousarray(tensor.T if _turned(name) else tensor)
        back = quantise(name, rows).astype(np.float32)
        decoded[name] = np.ascontiguousarray(back.T if _turned(name) else back)
    return decoded


def gguf(kind: str) -> Callable[[Tensors], Result]:
    """llama.cpp's formats, by the gguf package's own quantiser and writer: Q8_0, Q5_0, Q4_0."""

    def run(tensors: Tensors) -> Result:
        import gguf as library

        qtype = library.GGMLQuantizationType[kind]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            writer = library.GGUFWriter(path, "gpt2")

            def quantise(name: str, rows: np.ndarray) -> np.ndarray:
                packed = library.quants.quantize(rows, qtype)
                writer.add_tensor(name, packed, raw_dtype=qtype)
                return np.asarray(library.quants.dequantize(packed, qtype))

            decoded = _each_matrix(tensors, quantise)
            for name, tensor in tensors.items():
                if not is_matrix(tensor):
                    writer.add_tensor(name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return decoded, path.stat().st_size

    return run


def nf4(tensors: Tensors) -> Result:
    """bitsandbytes' NF4, groups of 64, double quantisation. Its two code tables are counted once, not per tensor."""
    import bitsandbytes.functional as library
    import torch

    stored: Tensors = {name: tensor for name, tensor in tensors.items() if not is_matrix(tensor)}

    def quantise(name: str, rows: np.ndarray) -> np.ndarray:
        packed, state = library.quantize_4bit(
            torch.from_numpy(rows), blocksize=GROUP, quant_type="nf4", compress_statistics=True
        )
        stored[f"{name}.packed"] = packed.numpy()
        stored[f"{name}.absmax"] = state.absmax.numpy()
        stored[f"{name}.nested_absmax"] = state.state2.absmax.numpy()
        stored[f"{name}.offset"] = state.offset.numpy().reshape(1)
        stored["code"], stored["nested_code"] = state.code.numpy(), state.state2.code.numpy()
        return np.asarray(library.dequantize_4bit(packed, state).numpy())

    return _each_matrix(tensors, quantise), _file_size(stored)


def hqq(bits: int) -> Callable[[Tensors], Result]:
    """HQQ, groups of 64, its optimiser on; scales and zeros in float16, as it runs."""

    def run(tensors: Tensors) -> Result:
        import torch
        from hqq.core.quantize import Quantizer

        stored: Tensors = {name: tensor for name, tensor in tensors.items() if not is_matrix(tensor)}

        def quantise(name: str, rows: np.ndarray) -> np.ndarray:
            packed, meta = Quantizer.quantize(
                torch.from_numpy(rows), nbits=bits, group_size=GROUP, axis=1, optimize=True, device="cpu"
            )
            for key in ("scale", "zero"):
                half = meta[key].half()
                stored[f"{name}.{key}"] = half.numpy()
                meta[key] = half.float()
            stored[f"{name}.packed"] = packed.numpy()
            return np.asarray(Quantizer.dequantize(packed, meta).float().numpy())

        return _each_matrix(tensors, quantise), _file_size(stored)

    return run


def _file_size(stored: Tensors) -> int:
    """Bytes of the safetensors file that holds all of it."""
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in stored.items()}, path)
        return path.stat().st_size


#: Name in the table -> how it is run, largest first.
PEERS: dict[str, Callable[[Tensors], Result]] = {
    "gguf Q8_0": gguf("Q8_0"),
    "gguf Q5_0": gguf("Q5_0"),
    "gguf Q4_0": gguf("Q4_0"),
    "bitsandbytes NF4": nf4,
    "HQQ 4 bit": hqq(4),
    "HQQ 3 bit": hqq(3),
    "HQQ 2 bit": hqq(2),
}


def versions() -> dict[str, Any]:
    """Versions of the packages above that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("gguf", "bitsandbytes", "hqq", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
