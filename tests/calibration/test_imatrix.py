"""llama.cpp's importance matrices, written as llama.cpp lays them out."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbe_cli.calibration.importance_file import read_importance
from rbe_cli.errors import CorruptFile, RBEError, UsageError
from tests.gguf_files import gguf_bytes, text

SUMS = {
    "blk.0.attn_q.weight": np.array([2.0, 4.0, 6.0], np.float32),
    "blk.0.attn_qkv.weight": np.array([8.0, 0.0, 1.0], np.float32),
    "blk.11.ffn_down.weight": np.array([1.0, 2.0], np.float32),
}
TOKENS = 4
#: Bytes of the numbers of GGUF, by their types.
NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def write_gguf(path: Path, sums: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> Path:
    """As llama-imatrix writes them."""
    arrays = {f"{name}.in_sum2": np.atleast_2d(array) for name, array in sums.items()}
    arrays |= {f"{name}.counts": counts[name].reshape(-1, 1) for name in sums if name in counts}
    path.write_bytes(gguf_bytes(arrays))
    return path


def write_binary(path: Path, calls: int = 2) -> Path:
    """The mean squares times the number of calls, and after them the last call and the text's name."""
    data = struct.pack("<i", len(SUMS))
    for name, sums in SUMS.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, sums.size)
        data += (sums / TOKENS * calls).astype("<f4").tobytes()
    path.write_bytes(data + struct.pack("<ii", calls, 8) + b"text.txt")
    return path


def counts(*names: str) -> dict[str, np.ndarray]:
    return {name: np.array([TOKENS], np.float32) for name in names}


@pytest.mark.parametrize("form", ["gguf", "binary"])
def test_both_forms_by_the_names_of_transformers(form: str, tmp_path: Path) -> None:
    path = tmp_path / "imatrix"
    importance = read_importance(write_gguf(path, SUMS, counts(*SUMS)) if form == "gguf" else write_binary(path))
    for name, shape, axis, key in (
        ("model.layers.0.self_attn.q_proj.weight", (3, 3), 1, "blk.0.attn_q.weight"),
        ("transformer.h.0.attn.c_attn.weight", (3, 9), 0, "blk.0.attn_qkv.weight"),
        ("h.0.attn.c_attn.weight", (3, 9), 0, "blk.0.attn_qkv.weight"),
        ("encoder.layer.0.attention.self.query.weight", (3, 3), 1, "blk.0.attn_q.weight"),
        ("model.layers.11.mlp.down_proj.weight", (7, 2), 1, "blk.11.ffn_down.weight"),
        ("transformer.h.11.mlp.c_proj.weight", (2, 7), 0, "blk.11.ffn_down.weight"),
        ("blk.11.ffn_down.weight", (7, 2), 1, "blk.11.ffn_down.weight"),
    ):
        found = importance.mean_square(name, shape)
        assert found is not None, name
        assert found[0] == axis
        assert found[1].tolist() == (SUMS[key] / TOKENS).tolist()
    assert importance.mean_square("model.layers.1.self_attn.q_proj.weight", (3, 3)) is None
    assert not importance.has_moments("model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(UsageError, match=r"'model.layers.0.self_attn.q_proj.weight' has 3 input channels"):
        importance.mean_square("model.layers.0.self_attn.q_proj.weight", (3, 4))


def test_each_expert_has_its_own(tmp_path: Path) -> None:
    sums = np.array([[1, 2, 3], [0, 0, 0], [4, 4, 8]], np.float32)
    name, tokens = "blk.2.ffn_up_exps.weight", np.array([1, 0, 4], np.float32)
    path = write_gguf(tmp_path / "i.gguf", {name: sums}, {name: tokens})
    importance = read_importance(path)
    for expert, want in enumerate(([1, 2, 3], None, [1, 1, 2])):
        found = importance.mean_square(f"model.layers.2.mlp.experts.{expert}.up_proj.weight", (6, 3))
        assert (None if found is None else found[1].tolist()) == want


def test_a_file_without_counts_or_with_wrong_ones(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="without an importance matrix"):
        read_importance(write_gguf(tmp_path / "a.gguf", SUMS, {}))
    wrong = {"blk.0.attn_q.weight": np.ones(2, np.float32)}
    with pytest.raises(CorruptFile, match=r"'blk.0.attn_q.weight.in_sum2' and its counts"):
        read_importance(write_gguf(tmp_path / "b.gguf", SUMS, wrong))
    negative = {"blk.0.attn_q.weight": -SUMS["blk.0.attn_q.weight"]}
    importance = read_importance(write_gguf(tmp_path / "c.gguf", negative, counts(*negative)))
    with pytest.raises(UsageError, match=r"c.gguf: 'blk.0.attn_q.weight' holds"):
        importance.mean_square("blk.0.attn_q.weight", (4, 3))


def test_what_the_gguf_package_writes(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "imatrix"
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    for name, values in SUMS.items():
        writer.add_tensor(f"{name}.in_sum2", np.atleast_2d(values))
        writer.add_tensor(f"{name}.counts", np.array([[TOKENS]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_importance(path).mean_square("model.layers.0.self_attn.q_proj.weight", (3, 3))
    assert found is not None
    assert found[1].tolist() == (SUMS["blk.0.attn_q.weight"] / TOKENS).tolist()


def test_values_of_every_type_are_passed_over(tmp_path: Path) -> None:
    values = [text(f"n{kind}") + struct.pack("<I", kind) + bytes(size) for kind, size in NUMBERS.items()]
    values += [text(f"l{kind}") + struct.pack("<IIQ", 9, kind, 3) + bytes(3 * size) for kind, size in NUMBERS.items()]
    values += [
        text("s") + struct.pack("<I", 8) + text("some"),
        text("l") + struct.pack("<IIQ", 9, 8, 2) + text("a") * 2,
    ]
    values += [text("general.alignment") + struct.pack("<II", 4, 64)]
    arrays = {"a.weight.in_sum2": np.array([[2.0, 4.0]], np.float32), "a.weight.counts": np.array([2.0], np.float32)}
    path = tmp_path / "i.gguf"
    path.write_bytes(gguf_bytes(arrays, b"".join(values), len(values), alignment=64))
    found = read_importance(path).mean_square("a.weight", (3, 2))
    assert found is not None
    assert found[1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("form", ["gguf", "binary"])
def test_cut_short_anywhere(form: str, tmp_path: Path) -> None:
    path = tmp_path / "imatrix"
    data = (write_gguf(path, SUMS, counts(*SUMS)) if form == "gguf" else write_binary(path)).read_bytes()
    # After the last entry are only padding or the text's name.
    end = len(data) - (16 if form == "binary" else 32)
    for size in range(4, end, 7):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptFile, match="imatrix: "):
            read_importance(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(RBEError, match="cannot be read"):
        read_importance(tmp_path / "none.dat")
    for data in (b"", b"\x00" * 4, b"\xff" * 64, b"GGUF" + b"\xff" * 64, struct.pack("<ii", 1 << 30, 1 << 30)):
        (tmp_path / "x.dat").write_bytes(data)
        with pytest.raises((CorruptFile, RBEError), match=r"x.dat: "):
            read_importance(tmp_path / "x.dat")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    """Whatever they say then, it is an importance matrix or one line."""
    arrays = {"a.weight.in_sum2": np.ones((2, 3), np.float32), "a.weight.counts": np.ones((2, 1), np.float32)}
    raw = bytearray(gguf_bytes(arrays, text("x") + struct.pack("<IIQ", 9, 0, 3) + bytes(3), 1))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(raw) - 1))
        raw[at] = data.draw(st.sampled_from([0, 1, 8, 9, 127, 128, 255]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "i.gguf")
        path.write_bytes(raw)
        with contextlib.suppress(RBEError):
            for name in read_importance(path).names:
                read_importance(path).mean_square(name, (3, 3))
