"""Four lanes in a vector register, with and without AVX-512, against Python integers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import pytest
from numba import njit

from rbe_cli.codec import warm_up
from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.trellis import trellis
from rbe_cli.codec.tensor_codec import open_tensor
from rbe_cli.kernels import lanes
from tests import naive
from tests.command_line import ENVIRONMENT

STATES = 64
AVX512 = bool(llvmlite.binding.get_host_cpu_features().get("avx512vl", False))


def compiled(expand: bool) -> Callable[..., Any]:
    four_symbols = lanes.symbols_intrinsic(expand)

    @njit
    def decode(registers, words, at, classes, t, coded, step, slots, points, out):  # type: ignore[no-untyped-def]
        """One symbol of each lane; uint32[2 * WIDTH] are their states, then those of their trellises."""
        x, s = lanes.load(registers, np.uint64(0)), lanes.load(registers, np.uint64(4))
        x, s, at, escaped = four_symbols(x, s, words, at, classes, t, coded, step, slots, points, out)
        lanes.store(x, registers, np.uint64(0))
        lanes.store(s, registers, np.uint64(4))
        return at, escaped

    return decode


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "expand", [False, pytest.param(True, marks=pytest.mark.skipif(not AVX512, reason="no AVX-512"))]
)
def test_like_the_twin(expand: bool, raw: bool) -> None:
    decode, family, rng = compiled(expand), tables.family(1), np.random.default_rng(0)
    words = rng.integers(0, 1 << 16, 40).astype(np.uint16)
    seen = set()
    for _ in range(2000):
        # States of all sizes, so that any lanes may run low.
        x = (rng.integers(1 << 16, 1 << 32, 4) >> rng.integers(0, 16, 4)).clip(1 << 16).astype(np.uint32)
        s = rng.integers(0, STATES, 4).astype(np.uint32)
        classes = rng.integers(0, (tables.MAX_CLASS if raw else tables.CLASSES) + 1, 8).astype(np.uint8)
        at, t = int(rng.integers(0, 32)), int(rng.integers(0, 5))
        registers, out = np.concatenate((x, s)), np.full(8, np.nan, np.float32)
        after, escaped = decode(
            registers, words, np.uint64(at), classes, np.uint64(t), np.uint32(tables.CLASSES) if raw else None,
            trellis(STATES).step, family.coding.slots, family.coding.points, out,
        )  # fmt: skip
        twin, twin_at, points, twin_escaped = naive.four_symbols(
            list(zip(x.tolist(), s.tolist(), strict=True)), words.tolist(), at, classes[t : t + 4].tolist(),
            tables.CLASSES, STATES, family.coding.slots, family.coding.points,
        )  # fmt: skip
        assert escaped == twin_escaped
        assert np.isnan(np.delete(out, slice(t, t + 4))).all()
        if not escaped:
            assert after == twin_at
            assert list(zip(registers[:4].tolist(), registers[4:].tolist(), strict=True)) == twin
            assert out[t : t + 4].tolist() == points
            seen.add(after - at)
    assert seen >= set(range(7 if raw else 5))


_GENERIC = """
import numpy as np
from rbe_cli.codec import warm_up
from rbe_cli.codec.tensor_codec import open_tensor
decoder = open_tensor(warm_up.CHUNKS[0], warm_up.SHAPE)
print(decoder.decode(warm_up.CHUNKS[1], decoder.grid[0]).tobytes().hex())
"""


def test_another_processor_is_compiled_for(tmp_path: Path) -> None:
    decoder = open_tensor(warm_up.CHUNKS[0], warm_up.SHAPE)
    generic = ENVIRONMENT | {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _GENERIC], env=generic, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == decoder.decode(warm_up.CHUNKS[1], decoder.grid[0]).tobytes().hex()
