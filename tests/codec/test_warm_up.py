"""What is compiled before a command works is all that it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli import models
from rbe_cli.codec import lossless, warm_up
from rbe_cli.codec.side_info import decode_integers
from rbe_cli.codec.tensor_codec import open_tensor

MINI_GPT2 = Path(models.__path__[0]) / "mini_gpt2"

_WORK = """
import importlib, json, pkgutil, sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
import rbe_cli.kernels as kernels
from rbe_cli.codec import warm_up
from rbe_cli.operations.decode import decode
from rbe_cli.operations.profile import profile
from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.operations.settings import Settings
from rbe_cli.operations.compress import compress

def compiled():
    modules = [importlib.import_module(f"rbe_cli.kernels.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
    found = {id(kernel): kernel for module in modules for kernel in vars(module).values()}.values()
    return sorted(
        f"{kernel.py_func.__module__}.{kernel.py_func.__name__}{types}"
        for kernel in found if isinstance(kernel, Dispatcher) for types in kernel.signatures
    )

wanted, model, packed, importance, out = sys.argv[1:]
getattr(warm_up, f"compile_{wanted}")()
before = compiled()
if wanted == "decoding":
    decode(Path(packed), Path(out), threads=1)
elif wanted == "analysis":
    profile(open_checkpoint(Path(model)), snr=30.0, threads=1)
else:
    wishes = {
        "all": {},
        "structure": {"structure_only": True, "overrides": ("attn=bits:4", "wte=lossless")},
        "feedback": {"importance": Path(importance)},
    }
    compress(open_checkpoint(Path(model)), Path(out), Settings(jobs=1, **wishes[wanted]))
print(json.dumps([before, compiled()]))
"""


@pytest.mark.parametrize("wanted", ["all", "analysis", "decoding", "structure", "feedback"])
def test_nothing_is_compiled_while_a_command_works(wanted: str, compressed: Path, tmp_path: Path) -> None:
    importance = tmp_path / "importance.safetensors"
    name, inputs = "transformer.h.0.mlp.c_fc.weight", 128
    save_file({name: np.ones(inputs), name + ".moments": np.eye(inputs)}, importance)
    files = map(str, (MINI_GPT2, compressed, importance, tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-c", _WORK, wanted, *files], capture_output=True, text=True, check=True
    )  # fmt: skip
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before
    assert [kernel for kernel in after if kernel not in before] == []


def test_what_is_decoded_first_is_what_is_coded() -> None:
    decoder = open_tensor(warm_up.CHUNKS[0], warm_up.SHAPE)
    ramp = np.linspace(-1, 1, 64, dtype=np.float32).reshape(warm_up.SHAPE)
    np.testing.assert_allclose(decoder.decode(warm_up.CHUNKS[1], decoder.grid[0]), ramp, atol=0.2)
    raw = lossless.decode_chunk(warm_up.EXACT_CHUNK, 0, "U8", (warm_up.BYTES,))
    np.testing.assert_array_equal(raw, np.arange(warm_up.BYTES) % 2)
    np.testing.assert_array_equal(decode_integers(warm_up.COUNTING, 8), np.arange(8))
