"""Structure only on real matrices: more of their energy than the largest coefficients of a DCT or DWT would keep."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rbe_cli.codec.structure.transform import dct_matrix, dwt_matrix
from rbe_cli.container.folder import Folder
from tests import naive
from tests.command_line import Run
from tests.synthetic import folder_bytes
from tests.test_minilm import PACKAGE, model_folder

pytestmark = [
    pytest.mark.minilm,
    pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed (make minilm)"),
]
MATRICES = {
    "embeddings.word_embeddings.weight": (100,),
    "embeddings.position_embeddings.weight": (100, 200),
    "encoder.layer.0.attention.self.query.weight": (100, 200),
    "encoder.layer.3.attention.output.dense.weight": (100, 200),
    "encoder.layer.2.intermediate.dense.weight": (100, 200),
    "encoder.layer.5.output.dense.weight": (100, 200),
}
BLOCK = 128


@pytest.mark.parametrize("name", MATRICES)
def test_keeps_more_than_the_largest_coefficients(rbe: Run, tmp_path: Path, name: str) -> None:
    w = load_file(model_folder() / "model.safetensors")[name]
    save_file({name: w}, tmp_path / "m.safetensors")
    for ratio in MATRICES[name]:
        out = tmp_path / f"{ratio}.rbe"
        wishes = ("--ratio", ratio, "--structure-only", "--threshold", 0, "--objective", "mse")
        assert rbe("compress", tmp_path / "m.safetensors", "-o", out, "-q", *wishes).code == 0
        size = sum(map(len, folder_bytes(out).values()))
        assert size <= w.nbytes / ratio
        wrong = Folder.open(out).tensor(name).astype(np.float64) - w
        kept = 1 - float((wrong**2).sum() / (w.astype(np.float64) ** 2).sum())
        for matrix_of in (dct_matrix, lambda n: dwt_matrix(n, 5)):
            assert kept > naive.top_coefficients_energy(w, matrix_of, BLOCK, size)
