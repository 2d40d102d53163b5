"""`--importance`: steps follow the inputs, errors are fed from input to input, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.container.folder import Folder
from rbe_cli.errors import UsageError
from rbe_cli.operations.compress import compress
from rbe_cli.operations.settings import Settings

INPUTS, OUTPUTS = 64, 160


@pytest.fixture(scope="module")
def moments() -> np.ndarray:
    """Of inputs that differ in strength and go together."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(600, 12)) @ rng.normal(size=(12, INPUTS)) + rng.normal(size=(600, INPUTS)) / 4
    x *= np.exp(rng.normal(size=INPUTS))
    return np.asarray(x.T @ x / 600, np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(6)
    tensors = {
        "linear.weight": rng.normal(size=(OUTPUTS, INPUTS)).astype(np.float32),
        "conv1d.weight": rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32),
        "other.weight": rng.normal(size=(80, 90)).astype(np.float32),
        "embed_tokens.weight": rng.normal(size=(OUTPUTS, INPUTS)).astype(np.float32),
    }
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def importance(tmp_path_factory: pytest.TempPathFactory, moments: np.ndarray) -> Path:
    names = ("linear.weight", "conv1d.weight", "embed_tokens.weight")
    found = {name: np.ascontiguousarray(np.diag(moments)) for name in names}
    path = tmp_path_factory.mktemp("importance") / "importance.safetensors"
    save_file(found | {f"{name}.moments": moments for name in names}, path)
    return path


def compressed(source: Path, out: Path, **wishes: object) -> Folder:
    settings = Settings(**{"bits": 32.0, "overrides": (".=bits:5",), "transform": "none", "objective": "mse", **wishes})  # type: ignore[arg-type]
    compress(open_checkpoint(source), out, settings)
    return Folder.open(out, whole=True)


def output_error(folder: Folder, source: Path, name: str, axis: int, moments: np.ndarray) -> float:
    """Mean square of the outputs' error."""
    error = (folder.tensor(name) - load_file(source)[name]).astype(np.float64)
    error = error.T if axis == 0 else error
    return float(np.einsum("ij,jk,ik->", error, moments.astype(np.float64), error))


@pytest.mark.parametrize(("name", "axis"), [("linear.weight", 1), ("conv1d.weight", 0)])
def test_outputs_are_nearer_with_importance_and_nearer_still_with_feedback(
    name: str, axis: int, source: Path, importance: Path, moments: np.ndarray, tmp_path: Path
) -> None:
    errors = [
        output_error(compressed(source, tmp_path / str(i), **wishes), source, name, axis, moments)
        for i, wishes in enumerate(({}, {"importance": importance, "feedback": False}, {"importance": importance}))
    ]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_bytes_are_the_same_for_any_number_of_threads_and_version_2_only_where_it_is_needed(
    source: Path, importance: Path, tmp_path: Path
) -> None:
    plain = compressed(source, tmp_path / "plain")
    folders = [compressed(source, tmp_path / str(jobs), importance=importance, jobs=jobs) for jobs in (1, 4)]
    for path in sorted((tmp_path / "1").iterdir()):
        assert path.read_bytes() == (tmp_path / "4" / path.name).read_bytes(), path.name
    for name, version in (("linear", 2), ("conv1d", 2), ("other", 1), ("embed_tokens", 1)):
        data = (tmp_path / "1" / f"{name}.rbe").read_bytes()
        assert data[8] == version
        # What the file knows nothing of, and tables that are looked up, are coded as without it.
        assert (data == (tmp_path / "plain" / f"{name}.rbe").read_bytes()) == (version == 1)
    assert folders[0].names() == plain.names()


def test_a_wrong_length_is_an_error_that_names_the_tensor(source: Path, tmp_path: Path) -> None:
    save_file({"linear.weight": np.ones(7, np.float32)}, tmp_path / "wrong.safetensors")
    with pytest.raises(UsageError, match=r"linear\.weight.*7 input channels"):
        compressed(source, tmp_path / "out", importance=tmp_path / "wrong.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_model_is_an_error(source: Path, tmp_path: Path) -> None:
    save_file({"encoder.weight": np.ones(7, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"knows of no tensor of .*it has encoder\.weight"):
        compressed(source, tmp_path / "out", importance=tmp_path / "other.safetensors")
