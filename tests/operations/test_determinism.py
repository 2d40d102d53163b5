"""The same bytes whatever the threads, the hash seed, numba's threading layer and the linear algebra's threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.command_line import rbe_process
from tests.synthetic import folder_bytes, scaled_normal

#: Environments and numbers of threads that differ in everything the result must not depend on. Kernels are called from
#: a pool of threads of our own and release the lock; none is compiled with `parallel=True`, so no layer ever starts.
RUNS = [
    (1, {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}),
    (2, {"PYTHONHASHSEED": "1", "OPENBLAS_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": "workqueue"}),
    (8, {"PYTHONHASHSEED": "4294967295", "OPENBLAS_NUM_THREADS": "2", "NUMBA_THREADING_LAYER": "omp",
         "NUMBA_NUM_THREADS": "2"}),
]  # fmt: skip


def write_model(path: Path) -> None:
    """Matrices that are coded with a dct, a Karhunen-Loeve basis, low rank and nothing, all of which use products."""
    rng = np.random.default_rng(1)
    waves = np.cos(np.outer(np.arange(512), np.linspace(0, 0.2, 128))) + 0.02 * rng.standard_normal((512, 128))
    mixed = rng.standard_normal((2048, 96)) @ (rng.standard_normal((96, 96)) * np.geomspace(1, 0.01, 96)[:, None])
    factors = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 200)) + 0.05 * rng.standard_normal((300, 200))
    tensors = {"positions": waves, "tokens": mixed, "factors": factors, "plain": scaled_normal((300, 200), 2)}
    save_file({name: values.astype(np.float32) for name, values in tensors.items()}, path)


def test_nothing_but_source_and_settings_decides_the_bytes(tmp_path: Path) -> None:
    write_model(tmp_path / "x.safetensors")
    packed, unpacked, methods = [], [], []
    for number, (jobs, environment) in enumerate(RUNS):
        out, back = tmp_path / f"{number}.rbe", tmp_path / f"{number}.safetensors"
        done = rbe_process(
            "compress", tmp_path / "x.safetensors", "-o", out, "--objective", "mse", "--effort", 2, "--jobs", jobs,
            "--json", "-q", **environment,
        )  # fmt: skip
        methods.append({tensor["choice"]["name"] for tensor in done.json()["tensors"]})
        assert rbe_process("decode", out, "-o", back, "--jobs", jobs, "-q", **environment).code == 0
        packed.append(folder_bytes(out))
        unpacked.append(back.read_bytes())
    assert packed[1:] == packed[:-1]
    assert unpacked[1:] == unpacked[:-1]
    assert methods[0] >= {"dct", "klt", "lowrank", "none"}
