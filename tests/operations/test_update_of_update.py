"""An update of an update: every version of a model as what changed since the last, and all of them in a row."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.container.folder import Folder
from rbe_cli.container.open_base import MOST_BASES
from rbe_cli.errors import RBEError
from rbe_cli.layers.weight_mapper import WeightMapper
from rbe_cli.operations.compress import compress
from rbe_cli.operations.settings import Settings
from rbe_cli.operations.verify import verify
from tests.command_line import Run
from tests.operations.test_update import as_bytes, base_of, trained
from tests.reference_decoder import decode_folder
from tests.synthetic import compress_to, decode_to, folder_bytes, read_tensors, scaled_normal, tiny_tensors

WISHES: dict[str, dict[str, Any]] = {
    "bits": {"bits": 3.0}, "NRMSE": {"nrmse": 0.003}, "lossless": {"lossless": True},
    "structure": {"bits": 2.0, "structure_only": True}, "klt": {"bits": 2.0, "transform": "klt"},
}  # fmt: skip


@pytest.fixture(scope="module")
def versions(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny model, fine-tuned once and twice. Read only."""
    folder = tmp_path_factory.mktemp("versions")
    second = trained(tiny_tensors())
    save_file(second, folder / "second.safetensors")
    save_file(trained(second), folder / "third.safetensors")
    return [tiny_source / "model.safetensors", folder / "second.safetensors", folder / "third.safetensors"]


def chain(versions: list[Path], out: Path, first: dict[str, Any], second: dict[str, Any]) -> list[Path]:
    """An update of the last version, what that is an update of, and what that is one of."""
    old, new, newest = versions
    compress(open_checkpoint(new), out / "second", Settings(**first), base=base_of(old))
    compress(open_checkpoint(newest), out / "third", Settings(**second), base=base_of(out / "second", old))
    return [out / "third", out / "second", old]


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("before", ["bits", "lossless"])
def test_what_a_chain_decodes_to(wish: str, before: str, versions: list[Path], tmp_path: Path) -> None:
    """The error is that of the last link alone, as claimed; and FORMAT.md says all that it takes to decode it."""
    third, *bases = chain(versions, tmp_path, WISHES[before], WISHES[wish])
    done = verify(third, open_checkpoint(versions[-1]), base=base_of(*bases))
    assert done.problems == []
    decode_to(third, tmp_path / "back", base=base_of(*bases))
    back = read_tensors(tmp_path / "back")
    assert any(tensor.base for tensor in Folder.open(third).manifest.tensors)
    if wish == "lossless":
        assert as_bytes(back) == as_bytes(read_tensors(versions[-1]))
    reference = decode_folder(third, *bases)
    for name, values in back.items():
        if reference[name].codec == "lossless":
            assert reference[name].data == values.tobytes(), name
        else:
            theirs = np.frombuffer(reference[name].data, values.dtype).astype(np.float64).reshape(values.shape)
            assert np.allclose(theirs, values.astype(np.float64), rtol=1e-2, atol=1e-6), name


@pytest.mark.parametrize("transforms", list(permutations(("none", "dct", "klt", "lowrank"))), ids="-".join)
def test_a_model_in_parts(transforms: tuple[str, ...], tmp_path: Path) -> None:
    """Each part makes what comes before more exact by what its bits are worth, whatever the structure of any.

    A part is decoded in the middle of decoding another: neither may disturb what the other has under way.
    """
    tensors = {
        name: scaled_normal((320, n), 1) + 3 * scaled_normal((320, 3), 2) @ scaled_normal((3, n), 3)
        for name, n in (("a", 96), ("b", 64), ("c", 80))
    }
    save_file({name: w.astype(np.float32) for name, w in tensors.items()}, tmp_path / "w.safetensors")
    parts: list[Path] = []
    for i, transform in enumerate(transforms):
        base = base_of(*parts) if parts else None
        settings = Settings(bits=2.0, transform=transform, jobs=1)
        compress(open_checkpoint(tmp_path / "w.safetensors"), tmp_path / str(i), settings, base=base)
        parts.insert(0, tmp_path / str(i))
        folder, reference = Folder.open(parts[0], base=base), decode_folder(*parts)
        for name, w in tensors.items():
            decoded = folder.tensor(name).astype(np.float64)
            assert -20 * np.log10(np.linalg.norm(decoded - w) / np.linalg.norm(w)) > 8 * (i + 1)
            theirs = np.frombuffer(reference[name].data, np.float32).reshape(w.shape)
            assert np.allclose(theirs, decoded, rtol=0, atol=1e-5 * np.abs(w).max())


def test_small_changes_stay_small(versions: list[Path], tmp_path: Path) -> None:
    """Each version of a model as an update of the last is as small, and what is not changed takes next to nothing."""
    third, *bases = chain(versions, tmp_path, {"nrmse": 0.01}, {"nrmse": 0.01})
    alone = compress_to(versions[-1], tmp_path / "alone", nrmse=0.01)
    assert Folder.open(third).manifest.stored_bytes < 0.6 * alone.size
    same = compress(
        open_checkpoint(versions[1]), tmp_path / "same", Settings(nrmse=0.01), base=base_of(bases[0], bases[1])
    )
    assert same.size < Folder.open(third).manifest.stored_bytes


def test_bytes_do_not_depend_on_threads(versions: list[Path], tmp_path: Path) -> None:
    for jobs in (1, 3):
        chain(versions, tmp_path / str(jobs), {"bits": 3.0, "jobs": jobs}, {"bits": 3.0, "jobs": jobs})
    for name in ("second", "third"):
        assert folder_bytes(tmp_path / "1" / name) == folder_bytes(tmp_path / "3" / name)


def test_another_link_is_refused(versions: list[Path], tmp_path: Path) -> None:
    """Also where its own chunks are the same, and what these are added to is not."""
    third, second, old = chain(versions, tmp_path, {"bits": 3.0}, {"bits": 3.0})
    compress(open_checkpoint(versions[1]), tmp_path / "other", Settings(bits=4.0), base=base_of(old))
    for wrong in ((tmp_path / "other", old), (old,), (versions[1],)):
        with pytest.raises(RBEError, match="was made against another model"):
            decode_to(third, tmp_path / "back", base=base_of(*wrong))
    with pytest.raises(RBEError, match="was made against another model"):
        decode_to(third, tmp_path / "back", base=base_of(second, versions[1]))
    assert not (tmp_path / "back").exists()


def test_a_fingerprint_is_also_of_what_is_added_to(tmp_path: Path) -> None:
    """Two versions that changed by the same since two bases: their chunks are alike, and they are not."""
    rng = np.random.default_rng(3)
    old, change = rng.standard_normal((2, 64, 64)).astype(np.float32)
    found = []
    for name, start in (("a", old), ("b", np.float32(2) * old)):
        save_file({"w": start}, tmp_path / f"{name}.safetensors")
        save_file({"w": start + change}, tmp_path / f"{name}-new.safetensors")
        base = base_of(tmp_path / f"{name}.safetensors")
        settings = Settings(rmse=0.05, transform="none")
        compress(open_checkpoint(tmp_path / f"{name}-new.safetensors"), tmp_path / name, settings, base=base)
        opened = base_of(tmp_path / name, tmp_path / f"{name}.safetensors").find("w")
        assert opened is not None
        found.append(opened.fingerprint)
    assert found[0] != found[1]


def test_layers_run_from_a_chain(versions: list[Path], tmp_path: Path) -> None:
    third, *bases = chain(versions, tmp_path, {"bits": 3.0}, {"bits": 3.0})
    folder = Folder.open(third, base=base_of(*bases))
    w = folder.tensor("h.0.attn.weight")
    x = np.ones((1, 96), np.float32)
    assert np.allclose(WeightMapper(folder).matrix("h.0.attn.weight").times_transposed(x), x @ w.T, rtol=1e-4)


def test_a_row_without_end(rbe: Run, versions: list[Path], tmp_path: Path) -> None:
    """A long one is read; one that is longer than the stack may be is refused."""
    row = [versions[0]]
    for i in range(MOST_BASES):
        compress(open_checkpoint(versions[i % 2]), tmp_path / str(i), Settings(bits=3.0, effort=0), base=base_of(*row))
        row.insert(0, tmp_path / str(i))
    bases = [word for part in row[1:] for word in ("--base", part)]
    assert rbe("verify", row[0], *bases, "-q").code == 0
    done = rbe("decode", row[0], *bases, "--base", versions[0], "-q")
    assert (done.code, "more than 32 bases in a row" in done.complaint()) == (2, True)


def test_as_typed(rbe: Run, versions: list[Path], tmp_path: Path) -> None:
    """The base of each is named after it; an output that would replace any of them is refused."""
    old, new, newest = versions
    assert rbe("compress", new, "--base", old, "--bits", 3, "-o", tmp_path / "u2", "-q").code == 0
    bases = ["--base", tmp_path / "u2", "--base", old]
    told = rbe("compress", newest, *bases, "--bits", 3, "-o", tmp_path / "u3", "--json").json()
    assert told["base"]["source"] == "u2"
    expected = rbe("compress", newest, *bases, "--bits", 3, "--dry-run", "--json").json()
    assert expected["totals"]["bytes"] == pytest.approx(told["totals"]["bytes"], rel=0.03)
    assert rbe("verify", tmp_path / "u3", *bases, "--against", newest, "-q").code == 0
    assert rbe("decode", tmp_path / "u3", *bases, "-o", tmp_path / "v3", "-q").code == 0
    done = rbe("sweep", newest, *bases, "--bits", "2,3", "--json").json()
    assert len(done["points"]) == 2
    for target in (tmp_path / "u2", old.parent):
        refused = rbe("compress", newest, *bases, "--bits", 3, "-o", target, "--force", "-q")
        assert refused.code != 0
        assert "the base" in refused.complaint() or "holds something" in refused.complaint()
    missing = rbe("decode", tmp_path / "u3", "--base", tmp_path / "u2", "-o", tmp_path / "x", "-q")
    assert (missing.code, "give that in a --base after it" in missing.complaint()) == (2, True)
    assert sorted(os.listdir(tmp_path)) == ["u2", "u3", "v3"]
