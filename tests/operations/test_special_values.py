"""What becomes of weights that are not like the others, from the source to what decode writes (docs/robustness.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.operations import plan
from rbe_cli.operations.compress import compress
from rbe_cli.operations.forecast import forecast
from rbe_cli.operations.settings import Settings
from tests.synthetic import BF16, compress_to, decode_to, read_tensors, scaled_normal

#: Every way of coding that a user can name.
WAYS: list[dict[str, Any]] = [
    {"nrmse": 0.05}, {"nrmse": 0.05, "objective": "mse"}, {"nrmse": 0.9}, {"nrmse": 0.9, "structure_only": True},
    *({"nrmse": 0.1, "transform": transform} for transform in ("dct", "dwt", "klt", "lowrank")),
]  # fmt: skip
FLOATS = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BF16}


class Notes:
    """A Progress that remembers what a person should know."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, elements: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def detail(self, text: str) -> None: ...


def there_and_back(tensors: dict[str, np.ndarray], folder: Path, **wish: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Compress and decode; the tensors that come back, and the manifest's entries."""
    folder.mkdir()
    save_file(tensors, folder / "x.safetensors")
    done = compress_to(folder / "x.safetensors", folder / "m", **({"effort": 0} | wish))
    decode_to(folder / "m", folder / "back")
    return read_tensors(folder / "back"), {tensor.name: tensor for tensor in done.manifest.tensors}


def matrix(dtype: str = "F32") -> np.ndarray:
    return scaled_normal((96, 64), 5).astype(FLOATS[dtype])


@pytest.mark.parametrize("wish", WAYS, ids=str)
def test_a_tensor_with_one_weight_that_is_not_finite_is_kept_exactly_and_it_is_said(
    wish: dict[str, Any], tmp_path: Path
) -> None:
    tensors = {"sound": matrix()}
    for dtype in FLOATS:
        for name, value in (("nan", np.nan), ("plus", np.inf), ("minus", -np.inf)):
            bad = matrix(dtype)
            bad[40, 7] = value
            tensors[f"{dtype}.{name}"] = bad
    said = Notes()
    back, entries = there_and_back(tensors, tmp_path / "x", progress=said, **wish)
    for name, tensor in tensors.items():
        if name == "sound":
            assert entries[name].nrmse > 0
            continue
        assert back[name].tobytes() == tensor.tobytes()
        assert (entries[name].method, entries[name].nrmse) == ("lossless", 0)
        assert [note for note in said.notes if note.startswith(f"{name}: holds NaN or infinity")]


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_and_constants_are_exact_and_nearly_free(dtype: str, tmp_path: Path) -> None:
    kinds = {
        "zeros": np.zeros((96, 64)), "minus zero": np.full((96, 64), -0.0), "constant": np.full((96, 64), 0.7),
        "one value": np.full((1024, 1), 3.0),
    }  # fmt: skip
    tensors = {name: values.astype(FLOATS[dtype]) for name, values in kinds.items()}
    back, entries = there_and_back(tensors, tmp_path / "x", nrmse=0.1)
    for name, tensor in tensors.items():
        assert back[name].tobytes() == tensor.tobytes()
        assert entries[name].bytes < 250


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_and_columns_of_zeros_stay_zeros(dtype: str, tmp_path: Path) -> None:
    w = matrix(dtype)
    w[10:20], w[:, 30:35] = 0, 0
    back, _ = there_and_back({"w": w}, tmp_path / "x", bits=6.0)
    assert not back["w"][10:20].any()
    assert not back["w"][:, 30:35].any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wish", [{"bits": 4.0}, {"bits": 4.0, "objective": "mse"}, {"bits": 2.5}], ids=str)
def test_outlier_of_76_sigma_is_not_clipped(dtype: str, wish: dict[str, Any], tmp_path: Path) -> None:
    w = np.random.default_rng(3).standard_normal((128, 96)).astype(FLOATS[dtype])
    w[50, 60] = 76
    back, entries = there_and_back({"w": w}, tmp_path / "x", **wish)
    assert entries["w"].method != "lossless"
    assert abs(float(back["w"][50, 60]) - 76) < 2


def test_denormals_are_exact_where_they_are_all_there_is(tmp_path: Path) -> None:
    """Below 1e-18 steps would leave float32's range: such a tensor is stored exactly. Beside others they are noise."""
    rng = np.random.default_rng(4)
    tensors = {
        "F32": (rng.standard_normal((96, 64)) * 1e-39).astype(np.float32),
        "F64": rng.standard_normal((96, 64)) * 1e-310,
        "BF16": (rng.standard_normal((96, 64)) * 1e-39).astype(BF16),
        "F16": (rng.standard_normal((96, 64)) * 1e-7).astype(np.float16),
    }
    back, entries = there_and_back(tensors, tmp_path / "x", nrmse=0.3)
    for name in ("F32", "F64", "BF16"):
        assert entries[name].method == "lossless"
        assert back[name].tobytes() == tensors[name].tobytes()
    # Float16's denormals are numbers like others in float32.
    assert entries["F16"].method == "trellis"
    assert entries["F16"].nrmse <= 0.3
    mixed = matrix()
    mixed[0, 0] = 1e-41
    assert abs(float(there_and_back({"w": mixed}, tmp_path / "y", bits=6.0)[0]["w"][0, 0])) < 0.01


@pytest.mark.parametrize(("dtype", "largest"), [("F16", 65504.0), ("BF16", 3.38e38)])
def test_what_would_overflow_on_the_way_back_is_the_largest_finite_number(
    dtype: str, largest: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    if dtype == "F16":
        w = (rng.choice([-1.0, 1.0], (96, 64)) * rng.uniform(0.9, 1, (96, 64)) * largest).astype(FLOATS[dtype])
    else:
        w = (rng.choice([-1.0, 1.0], (96, 64)) * largest).astype(FLOATS[dtype])
    assert np.isfinite(w.astype(np.float64)).all()
    back, entries = there_and_back({"w": w}, tmp_path / "x", bits=2.0 if dtype == "F16" else 6.0)
    assert np.isfinite(back["w"].astype(np.float64)).all()
    assert (entries["w"].method == "lossless") == (dtype == "BF16")


def test_float64_that_float32_lacks_is_exact(tmp_path: Path) -> None:
    w = matrix("F64")
    w[3, 3] = 1e300
    back, entries = there_and_back({"w": w}, tmp_path / "x", nrmse=0.1)
    assert entries["w"].method == "lossless"
    assert back["w"].tobytes() == w.tobytes()


@pytest.mark.parametrize(
    "wish", [{"bits": 4}, {"nrmse": 0.05}, {"lossless": True, "overrides": ("few=bits:4",)}], ids=str
)
def test_weights_of_few_values_are_kept_exactly_where_that_takes_less(wish: dict[str, Any], tmp_path: Path) -> None:
    """Signs, ternary and pruned weights, beside others; these have the bits those leave, and no less than before."""
    w = scaled_normal((512, 256), 5)
    tensors = {
        "few.signs": np.sign(w).astype(np.float32),
        "few.ternary": (0.03 * np.clip(np.round(w / np.abs(w).mean()), -1, 1)).astype(BF16),
        "few.pruned": np.where(np.abs(w) > np.quantile(np.abs(w), 0.95), w, 0).astype(np.float32),
        "others": w.astype(np.float32),
    }
    back, entries = there_and_back(tensors, tmp_path / "x", **wish)
    for name in ("few.signs", "few.ternary", "few.pruned"):
        assert back[name].tobytes() == tensors[name].tobytes()
        assert (entries[name].method, entries[name].nrmse) == ("lossless", 0)
        assert 8 * entries[name].bytes < 4 * w.size
    if "bits" in wish:
        assert entries["others"].method == "trellis"
        assert sum(entry.bytes for entry in entries.values()) == pytest.approx(4 * w.size / 2, rel=0.02)


def test_a_checkpoint_of_few_values_is_kept_exactly(tmp_path: Path) -> None:
    signs = {f"h.{i}.weight": np.sign(scaled_normal((256, 128), i)).astype(np.float32) for i in range(3)}
    back, entries = there_and_back(signs, tmp_path / "x", bits=4)
    assert {entry.method for entry in entries.values()} == {"lossless"}
    assert all(back[name].tobytes() == tensor.tobytes() for name, tensor in signs.items())


@pytest.mark.parametrize("ratio", [2.5, 6.0, 16.0])
def test_a_size_is_met_beside_a_matrix_that_takes_next_to_nothing_at_any_step(ratio: float, tmp_path: Path) -> None:
    """Equal rows are a few coefficients, however fine the step; beyond the finest that can be coded they are not."""
    save_file(
        {
            "h.equal": np.repeat(scaled_normal((1, 200), 1), 380, 0),
            "h.ternary": (0.07 * np.clip(np.round(scaled_normal((76, 368), 2)), -1, 1)).astype(BF16),
            "h.others": scaled_normal((76, 368), 3).astype(BF16),
        },
        tmp_path / "x.safetensors",
    )
    settings = Settings(ratio=ratio, objective="mse", effort=0, jobs=2)
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    done, expected = compress(checkpoint, tmp_path / "m", settings), forecast(checkpoint, settings).size
    budget = sum(info.nbytes for _, info in checkpoint.tensors) / ratio
    assert max(done.size, expected) <= 1.01 * budget
    assert done.size <= budget
    assert done.size > 0.98 * budget or max(tensor.nrmse for tensor in done.manifest.tensors) < 1e-5


def test_forecast_of_a_matrix_that_structure_alone_leaves_nothing_of(tmp_path: Path) -> None:
    factors = scaled_normal((139, 3), 1), scaled_normal((3, 368), 2)
    save_file({"h.low": (factors[0] @ factors[1]).astype(np.float32)}, tmp_path / "x.safetensors")
    settings = Settings(bits=3, structure_only=True, objective="mse", effort=0, jobs=2)
    found = forecast(open_checkpoint(tmp_path / "x.safetensors"), settings).manifest.tensors[0]
    assert found.method == "lowrank"
    assert found.nrmse < 0.01


def test_an_axis_longer_than_the_format_has_is_kept_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "LONGEST_AXIS", 4095)
    save_file({"a": scaled_normal((4096, 2), 1), "b": scaled_normal((64, 128), 2)}, tmp_path / "x.safetensors")
    tensors = compress_to(tmp_path / "x.safetensors", tmp_path / "c", bits=20).manifest.tensors
    assert [tensor.method.split(",")[0] for tensor in tensors] == ["lossless", "trellis"]
