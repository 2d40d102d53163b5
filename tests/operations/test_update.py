"""Updates from end to end: what changed since a base is written, comes back, and is told from what it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.container.folder import Folder
from rbe_cli.container.open_base import AnyBase, open_base
from rbe_cli.errors import CorruptFile, RBEError, UsageError
from rbe_cli.layers.weight_mapper import WeightMapper
from rbe_cli.operations.compress import Compressed, compress
from rbe_cli.operations.forecast import forecast
from rbe_cli.operations.settings import Settings
from rbe_cli.operations.verify import verify
from tests.command_line import ENVIRONMENT, Run
from tests.forge import edit_manifest, layer_bytes, replace_layer, split_layer
from tests.operations.test_resume import Killed, Notes, stopped_after
from tests.synthetic import (
    BF16,
    NUMPY_TYPES,
    compress_to,
    decode_to,
    folder_bytes,
    read_tensors,
    scaled_normal,
    tiny_tensors,
    write_sharded_model,
)

Tensors = dict[str, np.ndarray]
SHAPE = (160, 96)


def base_of(*paths: Path) -> AnyBase:
    base = open_base(list(map(str, paths)), lambda source: open_checkpoint(Path(source)))
    assert base is not None
    return base


def update(source: Path, out: Path, base: Path, *, progress: Any = None, **wishes: Any) -> Compressed:
    resume = wishes.pop("resume", False)
    force = wishes.pop("force", False)
    return compress(
        open_checkpoint(source), out, Settings(**{"jobs": 2} | wishes), base=base_of(base), resume=resume, force=force,
        progress=progress,
    )  # fmt: skip


def bases(done: Compressed) -> dict[str, str]:
    """The tensors that are stored against the base, and their fingerprints."""
    return {tensor.name: tensor.base for tensor in done.manifest.tensors if tensor.base}


def bases_of(folder: Path) -> list[str]:
    """The names of the former."""
    return [tensor.name for tensor in Folder.open(folder).manifest.tensors if tensor.base]


def there_and_back(new: Path, base: Path, scratch: Path, **wishes: Any) -> tuple[Compressed, Tensors]:
    """An update, what it decodes to; it is sound, and the errors in its manifest are those of what it decodes to."""
    done = update(new, scratch / "update", base, force=True, **wishes)
    assert verify(scratch / "update", open_checkpoint(new), base=base_of(base)).problems == []
    shutil.rmtree(scratch / "back", ignore_errors=True)
    decode_to(scratch / "update", scratch / "back", base=base_of(base))
    return done, read_tensors(scratch / "back")


def as_bytes(tensors: Tensors) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in tensors.items()}


def one(path: Path, **tensors: np.ndarray) -> Path:
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path)
    return path


def trained(tensors: Tensors) -> Tensors:
    """A hundredth of every float32 matrix is another; everything else is what it was."""
    rng = np.random.default_rng(11)

    def changed(values: np.ndarray) -> np.ndarray:
        if values.dtype != np.float32 or values.size < 100 or not np.isfinite(values).all():
            return values
        change = rng.standard_normal(values.shape) * np.abs(values).mean() / 100
        return (values + change).astype(np.float32)

    return {name: changed(values) for name, values in tensors.items()}


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, fine-tuned. Read only."""
    path = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    save_file(trained(tiny_tensors()), path)
    return path


@pytest.fixture(scope="session")
def tuned_update(tuned: Path, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its update since the tiny model. Read only."""
    out = tmp_path_factory.mktemp("update") / "update"
    assert len(bases(update(tuned, out, tiny_source, bits=3.0))) > 8
    return out


# What comes of it


WISHES: dict[str, dict[str, Any]] = {
    "bits": {"bits": 3.0}, "ratio": {"ratio": 12}, "size": {"size": 40_000}, "NRMSE": {"nrmse": 0.01},
    "RMSE": {"rmse": 1e-3}, "lossless": {"lossless": True}, "structure": {"bits": 2.0, "structure_only": True},
    "dct": {"bits": 2.0, "transform": "dct"}, "dwt": {"bits": 2.0, "transform": "dwt"},
    "klt": {"bits": 2.0, "transform": "klt"}, "low rank": {"bits": 2.0, "transform": "lowrank"},
    "effort 0": {"bits": 2.0, "effort": 0}, "effort 9": {"bits": 2.0, "effort": 9},
}  # fmt: skip


@pytest.mark.parametrize("wish", WISHES)
def test_what_is_its_own_base_takes_next_to_nothing(wish: str, tiny_source: Path, tmp_path: Path) -> None:
    done, back = there_and_back(tiny_source, tiny_source, tmp_path, **WISHES[wish])
    assert as_bytes(back) == as_bytes(tiny_tensors())
    assert done.size < 500 * len(back)
    tied = {"wte.weight", "lm_head.weight"}
    assert len(tied & bases(done).keys()) == 1
    assert not {"nothing", "scale"} & bases(done).keys()
    expected = forecast(open_checkpoint(tiny_source), Settings(jobs=2, **WISHES[wish]), base=base_of(tiny_source))
    assert abs(expected.size / done.size - 1) < 0.02


@pytest.mark.parametrize("wish", WISHES)
def test_updates_at_every_wish(wish: str, tuned: Path, tiny_source: Path, tmp_path: Path) -> None:
    """The same bytes for any number of threads, the size that was forecast, and what has not changed exact."""
    settings = WISHES[wish]
    done, back = there_and_back(tuned, tiny_source, tmp_path, **settings)
    new = read_tensors(tuned)
    for name, values in tiny_tensors().items():
        if new[name].tobytes() == values.tobytes():
            assert back[name].tobytes() == values.tobytes(), name
    assert "h.0.attn.weight" in bases(done)
    expected = forecast(open_checkpoint(tuned), Settings(jobs=2, **settings), base=base_of(tiny_source))
    assert abs(expected.size / done.size - 1) < 0.02
    update(tuned, tmp_path / "alone", tiny_source, **settings | {"jobs": 1})
    assert folder_bytes(tmp_path / "alone") == folder_bytes(tmp_path / "update")


def test_overrides_and_what_is_left_out(tuned: Path, tiny_source: Path, tmp_path: Path) -> None:
    """What is not to be looked at at all is stored as it is; what is to be exact, as what changed."""
    done, back = there_and_back(
        tuned, tiny_source, tmp_path, nrmse=0.01, exclude=("attn",), overrides=("conv=lossless", "h.1=nrmse:0.1")
    )
    new = read_tensors(tuned)
    stored = {tensor.name: tensor for tensor in done.manifest.tensors}
    assert {stored[name].method for name in ("h.0.attn.weight", "conv.weight")} == {"lossless"}
    for name in ("h.0.attn.weight", "conv.weight"):
        assert back[name].tobytes() == new[name].tobytes()


ODD = scaled_normal(SHAPE, 3)
NEAR = ODD + 0.01 * scaled_normal(SHAPE, 4)


def with_first(values: np.ndarray, first: float) -> np.ndarray:
    out = values.copy()
    out[0, 0] = first
    return out


def full(value: float, dtype: Any = np.float32) -> np.ndarray:
    return np.full(SHAPE, value, dtype)


#: (of the base, of the tensor)
PAIRS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "NaN in the base": (with_first(ODD, np.nan), NEAR),
    "NaN in the tensor": (ODD, with_first(NEAR, np.nan)),
    "NaN in both": (with_first(ODD, np.nan), with_first(NEAR, np.nan)),
    "infinity in both": (with_first(ODD, np.inf), with_first(NEAR, np.inf)),
    "infinity of both signs": (with_first(ODD, np.inf), with_first(NEAR, -np.inf)),
    "one difference that overflows": (with_first(ODD, 3.4e38), with_first(NEAR, -3.4e38)),
    "differences that overflow": (full(3.4e38), full(-3.4e38)),
    "a base near the largest": ((3.3e38 * np.sign(ODD)).astype(np.float32), NEAR),
    "a base of float64 that overflows": (full(1e300, np.float64), NEAR),
    "float64 beyond float32": (full(1e300, np.float64), full(1e300, np.float64) + 1e290),
    "zeros in the base": (full(0), NEAR),
    "zeros in the tensor": (ODD, full(0)),
    "zeros in both": (full(0), full(0)),
    "minus zeros": (full(0.0), full(-0.0)),
    "a constant more": (ODD, ODD + np.float32(0.01)),
    "one element more": (ODD, with_first(ODD, 1.0)),
    "one that is huge": (ODD, with_first(ODD, 1e20)),
    "denormal numbers": ((ODD * 1e-40).astype(np.float32), (NEAR * 1e-40).astype(np.float32)),
    "a much larger base": (1000 * ODD, NEAR),
    "float64 since float32": (ODD, NEAR.astype(np.float64)),
    "float32 since bfloat16": (ODD.astype(BF16), NEAR),
    "bfloat16 since float32": (ODD, NEAR.astype(BF16)),
    "bfloat16 since float16": (ODD.astype(np.float16), NEAR.astype(BF16)),
    "rounded": (ODD, ODD.astype(BF16)),
    "float8, the same": (ODD.astype(NUMPY_TYPES["F8_E4M3"]), ODD.astype(NUMPY_TYPES["F8_E4M3"])),
    "float8, another": (ODD.astype(NUMPY_TYPES["F8_E4M3"]), NEAR.astype(NUMPY_TYPES["F8_E4M3"])),
    "float8 since another float8": (ODD.astype(NUMPY_TYPES["F8_E5M2"]), NEAR.astype(NUMPY_TYPES["F8_E4M3"])),
    "integers": ((1000 * ODD).astype(np.int32), (1000 * NEAR).astype(np.int32)),
    "a float since integers": ((1000 * ODD).astype(np.int32), NEAR),
    "integers since a float": (ODD, (1000 * NEAR).astype(np.int32)),
    "another shape": (np.ascontiguousarray(ODD.T), NEAR),
    "nothing": (np.zeros((0, 5), np.float32), np.zeros((0, 5), np.float32)),
    "a number": (np.array(2.5, np.float32), np.array(2.25, np.float32)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("compressed_base", [False, True], ids=["checkpoint", "compressed"])
@pytest.mark.parametrize("what", PAIRS)
def test_values_of_all_kinds(what: str, compressed_base: bool, tmp_path: Path) -> None:
    """Nothing is lost that is not told, whatever the base holds; and never much more is written than without it."""
    old, new = PAIRS[what]
    base, source = (
        one(tmp_path / f"{i}.safetensors", t=values, more=np.ones(3)) for i, values in enumerate((old, new))
    )
    if compressed_base:
        compress_to(base, tmp_path / "base", nrmse=0.001)
        base = tmp_path / "base"
    done, back = there_and_back(source, base, tmp_path, nrmse=0.01)
    entry = next(tensor for tensor in done.manifest.tensors if tensor.name == "t")
    assert entry.nrmse <= 0.01
    if not entry.nrmse:
        assert back["t"].tobytes() == new.tobytes()
    tensors = compress_to(source, tmp_path / "alone", nrmse=0.01).manifest.tensors
    alone = next(tensor for tensor in tensors if tensor.name == "t")
    assert entry.bytes <= 1.05 * alone.bytes + 60


@pytest.mark.parametrize("part", [0.99, 0.999, 1.0, 1.001])
@pytest.mark.parametrize("shape", [SHAPE, (4, 9000), (9000, 4)])
def test_an_error_about_as_large_as_the_change(shape: tuple[int, int], part: float, tmp_path: Path) -> None:
    """Where nothing has to be coded, or next to nothing, the search for the step does not give up."""
    old = scaled_normal(shape, 1)
    new = (old + 0.01 * scaled_normal(shape, 2)).astype(np.float32)
    rmse = part * float(np.sqrt(np.square(new - old, dtype=np.float64).mean()))
    base, source = one(tmp_path / "old.safetensors", t=old), one(tmp_path / "new.safetensors", t=new)
    (entry,) = update(source, tmp_path / "out", base, rmse=rmse).manifest.tensors
    assert entry.rmse <= rmse * (1 + 1e-9)
    assert entry.bytes < 0.1 * old.size


def test_a_size_that_only_the_change_fits_in(tmp_path: Path) -> None:
    """What it saves is without bounds."""
    old = scaled_normal((20000, 4), 5)
    base, source = one(tmp_path / "old.safetensors", t=old), one(tmp_path / "new.safetensors", t=old + np.float32(1e-4))
    (entry,) = update(source, tmp_path / "out", base, bits=0.5).manifest.tensors
    assert entry.base
    assert 0 < entry.nrmse < 0.01
    with pytest.raises(RBEError, match="cannot be that small"):
        compress_to(source, tmp_path / "alone", bits=0.5)


def test_an_error_that_the_threshold_does_not_allow_is_not_forecast(tmp_path: Path) -> None:
    """Without a coded residual, what is below it is lost at any step: a larger error was told than was asked for."""
    rng = np.random.default_rng(0)
    old = rng.standard_normal((2, 2764))
    base = one(tmp_path / "old.safetensors", t=old)
    source = one(tmp_path / "new.safetensors", t=old + 1e-3 * rng.standard_normal(old.shape))
    wishes: dict[str, Any] = {"nrmse": 3e-5, "structure_only": True, "threshold": 0.3}
    done = update(source, tmp_path / "out", base, **wishes)
    expected = forecast(open_checkpoint(source), Settings(jobs=2, **wishes), base=base_of(base))
    assert [tensor.nrmse for tensor in (*done.manifest.tensors, *expected.manifest.tensors)] == [0, 0]
    assert abs(expected.size / done.size - 1) < 0.02


def test_ties_that_come_and_go(tmp_path: Path) -> None:
    """Two that are the same where the base has two, and two where the base has the same."""
    tied, untied = {"a.weight": ODD, "b.weight": ODD}, {"a.weight": ODD, "b.weight": NEAR}
    paths = [one(tmp_path / f"{i}.safetensors", **tensors) for i, tensors in enumerate((tied, untied))]
    for compressed_base in (False, True):
        for old, new in ((0, 1), (1, 0)):
            base = paths[old]
            if compressed_base:
                base = tmp_path / f"base{old}"
                compress_to(paths[old], base, lossless=True)
            done, back = there_and_back(paths[new], base, tmp_path, lossless=True)
            assert as_bytes(back) == as_bytes([tied, untied][new])
            assert done.size < 1.1 * ODD.nbytes


def test_names_that_overlap_in_part(tmp_path: Path) -> None:
    old = one(tmp_path / "old.safetensors", a=ODD, gone=ODD, c=ODD.T)
    new = one(tmp_path / "new.safetensors", a=ODD, added=NEAR, c=NEAR)
    done, back = there_and_back(new, old, tmp_path, lossless=True)
    assert as_bytes(back) == as_bytes({"a": ODD, "added": NEAR, "c": NEAR})
    assert list(bases(done)) == ["a"]
    with pytest.raises(UsageError, match="has no tensor of"):
        update(one(tmp_path / "x.safetensors", x=ODD), tmp_path / "x", old, bits=4.0)


def test_shards_since_one_file(tiny_source: Path, tmp_path: Path) -> None:
    new = write_sharded_model(tmp_path / "shards")
    done, back = there_and_back(new, tiny_source, tmp_path, bits=4.0)
    assert as_bytes(back) == as_bytes(tiny_tensors())
    assert len(done.manifest.sources) == 3
    again, _ = there_and_back(tiny_source, new, tmp_path, bits=4.0)
    assert sorted(bases(again).values()) == sorted(bases(done).values())


# Going on after a kill


@pytest.mark.parametrize("then", ["the same", "another", "none"])
def test_going_on_after_a_kill(then: str, tuned: Path, tiny_source: Path, tmp_path: Path) -> None:
    """With the same base only: what another left would decode to something else, or not at all."""
    other = one(tmp_path / "other.safetensors", **{n: v for n, v in tiny_tensors().items() if n != "conv.weight"})
    base = {"the same": tiny_source, "another": other, "none": None}[then]
    run = partial(update, base=base) if base else compress_to
    with stopped_after(4, Killed):
        update(tuned, tmp_path / "out", tiny_source, bits=6.0)
    said = Notes()
    run(tuned, tmp_path / "out", resume=True, progress=said, bits=6.0)
    run(tuned, tmp_path / "whole", bits=6.0)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")
    started = [note for note in said.notes if "starting" in note]
    kept = sum("finished before" in text for text in said.details)
    if then == "the same":
        assert (started, kept) == ([], 4)
    else:
        assert (started, kept) == (["starting at the beginning: what is there was made with another base"], 0)


def test_a_base_where_there_was_none(tuned: Path, tiny_source: Path, tmp_path: Path) -> None:
    with stopped_after(4, Killed):
        compress_to(tuned, tmp_path / "out", bits=6.0)
    update(tuned, tmp_path / "out", tiny_source, bits=6.0, resume=True)
    update(tuned, tmp_path / "whole", tiny_source, bits=6.0)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


# What must not be lost


def test_the_base_is_not_replaced_by_its_update(rbe: Run, tuned: Path, tiny_source: Path, tmp_path: Path) -> None:
    compress_to(tiny_source, tmp_path / "base", bits=6.0)
    before = folder_bytes(tmp_path)
    for out in (tmp_path / "base", tmp_path):
        done = rbe("compress", tuned, "--base", tmp_path / "base", "--force", "-q", "-o", out)
        assert (done.code, done.complaint()) == (1, f"{out}: holds the base; choose another output with -o")
    assert folder_bytes(tmp_path) == before


def test_the_base_is_not_replaced_by_what_is_decoded(rbe: Run, tuned_update: Path, tmp_path: Path) -> None:
    base = tmp_path / "base" / "tuned.safetensors"
    base.parent.mkdir()
    save_file(tiny_tensors(), base)
    before = folder_bytes(tmp_path)
    for out in (base, base.parent):
        done = rbe("decode", tuned_update, "--base", base, "--force", "-q", "-o", out)
        assert (done.code, done.complaint()) == (1, f"{out}: holds the base; choose another output with -o")
    assert folder_bytes(tmp_path) == before


# What is not its base


def other_values(tensors: Tensors) -> None:
    tensors["h.0.attn.weight"] = NEAR


def other_type(tensors: Tensors) -> None:
    tensors["h.0.attn.weight"] = tensors["h.0.attn.weight"].astype(np.float64)


def integers(tensors: Tensors) -> None:
    """Of the same bytes."""
    tensors["h.0.attn.weight"] = tensors["h.0.attn.weight"].view(np.int32)


def other_shape(tensors: Tensors) -> None:
    """Of the same bytes."""
    tensors["h.0.attn.weight"] = tensors["h.0.attn.weight"].reshape(96, 160)


def missing(tensors: Tensors) -> None:
    del tensors["h.0.attn.weight"]


@pytest.mark.parametrize("change", [other_values, other_type, integers, other_shape, missing])
def test_another_base_is_refused(
    change: Callable[[Tensors], None], tuned_update: Path, tmp_path: Path, rbe: Run
) -> None:
    tensors = tiny_tensors()
    change(tensors)
    base = one(tmp_path / "other.safetensors", **tensors)
    for command in (["decode", "-o", tmp_path / "back"], ["verify"]):
        done = rbe(*command, tuned_update, "--base", base, "-q")
        assert done.code == 1
        assert "tensor 'h.0.attn.weight': was made against another model than other.safetensors" in done.complaint()
    assert not (tmp_path / "back").exists()


def forged(layer: str | None, manifest: str | None) -> Callable[[Path], None]:
    """Another base of h.0.attn.weight in the layer file and in the manifest; None is none."""

    def put(tensors: list[dict[str, Any]], base: str | None) -> None:
        tensor = next(tensor for tensor in tensors if tensor["name"] == "h.0.attn.weight")
        del tensor["base"]
        tensor |= {"base": base} if base is not None else {}

    def forge(folder: Path) -> None:
        header, chunks = split_layer((folder / "h.0.attn.rbe").read_bytes())
        put(header["tensors"], layer)
        replace_layer(folder, "h.0.attn.rbe", layer_bytes(header, chunks))
        entries = {entry["file"]: i for i, entry in enumerate(json.loads((folder / "rbe.json").read_bytes())["layers"])}
        edit_manifest(folder, lambda value: put(value["layers"][entries["h.0.attn.rbe"]]["tensors"], manifest))

    return forge


@pytest.mark.parametrize(
    ("forge", "code", "words"),
    [
        (forged(None, "0123456789abcdef"), 4, "h.0.attn.rbe: holds other tensors than the manifest says"),
        (forged("0123456789abcdef", None), 4, "h.0.attn.rbe: holds other tensors than the manifest says"),
        (forged("0123456789abcdef", "f" * 16), 4, "h.0.attn.rbe: holds other tensors than the manifest says"),
        (forged("f" * 16, "f" * 16), 1, "tensor 'h.0.attn.weight': was made against another model than model"),
    ],
    ids=["manifest only", "layer only", "not the same", "another"],
)
def test_forged_fingerprints(
    forge: Callable[[Path], None],
    code: int,
    words: str,
    tuned_update: Path,
    tiny_source: Path,
    tmp_path: Path,
    rbe: Run,
) -> None:
    copy = Path(shutil.copytree(tuned_update, tmp_path / "update"))
    forge(copy)
    for command in (["decode", "-o", tmp_path / "back"], ["verify"]):
        done = rbe(*command, copy, "--base", tiny_source, "-q")
        assert (done.code, words in done.complaint()) == (code, True), done.err
    assert os.listdir(tmp_path) == ["update"]


def test_a_forged_tensor_without_its_base(tuned_update: Path, tiny_source: Path, tuned: Path, tmp_path: Path) -> None:
    """The change alone, given for the tensor: only the original tells."""
    copy = Path(shutil.copytree(tuned_update, tmp_path / "update"))
    forged(None, None)(copy)
    assert verify(copy, base=base_of(tiny_source)).problems == []
    assert verify(copy, open_checkpoint(tuned), base=base_of(tiny_source)).untrue == {"h.0.attn.weight"}


def test_a_base_that_is_lossily_coded_is_another(tuned_update: Path, tiny_source: Path, tmp_path: Path) -> None:
    """And one that is compressed exactly is the same."""
    compress_to(tiny_source, tmp_path / "lossy", bits=8.0)
    compress_to(tiny_source, tmp_path / "exact", lossless=True)
    with pytest.raises(RBEError, match="was made against another model than lossy"):
        decode_to(tuned_update, tmp_path / "back", base=base_of(tmp_path / "lossy"))
    decode_to(tuned_update, tmp_path / "one", base=base_of(tiny_source))
    decode_to(tuned_update, tmp_path / "two", base=base_of(tmp_path / "exact"))
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")


def test_the_original_tells_whether_an_update_is_true(tuned_update: Path, tiny_source: Path) -> None:
    done = verify(tuned_update, open_checkpoint(tiny_source), base=base_of(tiny_source))
    assert "h.0.attn.weight" in done.untrue
    assert done.problems


def test_a_compressed_base_that_is_damaged_is_named(tuned: Path, tiny_source: Path, tmp_path: Path, rbe: Run) -> None:
    """In the middle of a chunk: an exact tensor's, of which the fingerprint is taken, and a coded one's."""
    base = tmp_path / "base"
    compress_to(tiny_source, base, bits=6.0)
    update(tuned, tmp_path / "update", base, bits=3.0)
    for file in ("positions.rbe", "h.0.attn.rbe"):
        whole = (base / file).read_bytes()
        (base / file).write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        for command in (
            ["decode", tmp_path / "update", "-o", tmp_path / "back"],
            ["verify", tmp_path / "update"],
            ["compress", tuned, "-o", tmp_path / "again"],
        ):
            done = rbe(*command, "--base", base, "-q")
            assert done.code == 4, command
            assert f"{base / file}: chunk " in done.complaint()
        (base / file).write_bytes(whole)
    assert sorted(os.listdir(tmp_path)) == ["base", "update"]


def test_a_base_that_changes_meanwhile(tuned: Path, tuned_update: Path, tmp_path: Path) -> None:
    base = one(tmp_path / "base.safetensors", **tiny_tensors())
    opened = base_of(base)
    with base.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"changed!")
    os.utime(base, ns=(0, 0))
    with pytest.raises(RBEError, match=r"base.safetensors: changed while it was read"):
        decode_to(tuned_update, tmp_path / "back", base=opened)
    with pytest.raises(RBEError, match=r"base.safetensors: changed while it was read"):
        compress(open_checkpoint(tuned), tmp_path / "out", Settings(bits=4.0), base=opened)
    assert os.listdir(tmp_path) == ["base.safetensors"]


# How it is called


def test_what_a_base_cannot_be(rbe: Run, tuned_update: Path, tiny_source: Path, tmp_path: Path) -> None:
    compress_to(tiny_source, tmp_path / "base", bits=6.0)
    for arguments, code, words in (
        ([tuned_update], 2, "is an update of model; give that with --base"),
        ([tmp_path / "base", "--base", tiny_source], 2, "is no update, it needs no --base"),
        ([tuned_update, "--base", tuned_update], 2, "is an update itself, of model; give that in a --base after it"),
        ([tuned_update, "--base", tiny_source, "--base", tuned_update], 2, "is an update itself, of model"),
        ([tuned_update, "--base", tiny_source, "--base", tiny_source], 2, "is no update, it needs no --base after it"),
        ([tuned_update, "--base", tmp_path / "nowhere"], 1, "no such file or folder"),
        ([tuned_update, "--base", tmp_path / "base" / "h.0.attn.rbe"], 1, "is compressed already"),
        ([tuned_update, "--base-revision", "main"], 2, "--base-revision is of no model without --base"),
        ([tuned_update, "--base", tiny_source, "--base-revision", "main"], 2, "is not of the hub"),
        ([tuned_update, "--base", tmp_path / "base", "--base-revision", "main"], 2, "is not of the hub"),
    ):
        for command in (["decode", "-o", tmp_path / "back"], ["verify"]):
            done = rbe(*command, *arguments, "-q")
            assert (done.code, words in done.complaint()) == (code, True), done.err
    assert os.listdir(tmp_path) == ["base"]


def test_a_base_of_a_name_that_is_no_text(tuned: Path, tiny_source: Path, tmp_path: Path) -> None:
    base = Path(os.fsdecode(os.fsencode(tmp_path) + b"/base\xff"))
    compress_to(tiny_source, base, bits=6.0)
    with pytest.raises(RBEError, match="its name is no UTF-8"):
        update(tuned, tmp_path / "out", base, bits=4.0)


def test_through_pipes(tuned: Path, tiny_source: Path, tmp_path: Path) -> None:
    """`-o -`: the update as a tar, and what it decodes to."""

    def piped(*arguments: object) -> bytes:
        command = [sys.executable, "-m", "rbe_cli", *map(str, arguments), "-o", "-", "-q"]
        return subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=True).stdout

    with tarfile.open(fileobj=BytesIO(piped("compress", tuned, "--base", tiny_source, "--bits", 3))) as tar:
        tar.extractall(tmp_path)
    update(tuned, tmp_path / "update", tiny_source, bits=3.0)
    assert folder_bytes(tmp_path / "tuned.rbe") == folder_bytes(tmp_path / "update")
    decode_to(tmp_path / "update", tmp_path / "back.safetensors", base=base_of(tiny_source))
    decoded = piped("decode", tmp_path / "update", "--base", tiny_source)
    assert decoded == (tmp_path / "back.safetensors").read_bytes()


def test_nothing_goes_to_a_pipe_where_any_tensor_has_another_base(
    tuned_update: Path, tiny_source: Path, tmp_path: Path
) -> None:
    last = bases_of(tuned_update)[-1]
    other = tiny_tensors()
    other[last] = other[last] + np.float32(1)
    base = one(tmp_path / "other.safetensors", **other)
    command = [sys.executable, "-m", "rbe_cli", "decode", str(tuned_update), "--base", str(base), "-o", "-", "-q"]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"tensor '{last}': was made against another model".encode() in done.stderr


def test_what_is_told_of_an_update(rbe: Run, tuned: Path, tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "update"
    told = rbe("compress", tuned, "--base", tiny_source, "--bits", 3, "-o", out, "--json").json()
    expected = rbe("compress", tuned, "--base", tiny_source, "--bits", 3, "--dry-run", "--json").json()
    found = rbe("inspect", out, "--json").json()
    assert told["base"] == found["base"]
    assert (told["base"]["source"], expected["base"]["source"]) == ("model", "model")
    assert [t["base"] for t in told["tensors"]] == [t["base"] for t in found["tensors"]]
    assert {t["name"] for t in expected["tensors"] if t["base"]} == {t["name"] for t in told["tensors"] if t["base"]}
    assert "since model" in rbe("inspect", out).out
    assert rbe("inspect", out / "h.0.attn.rbe").code == 0


def test_layers_run_from_an_update(tuned_update: Path, tiny_source: Path, tmp_path: Path) -> None:
    decode_to(tuned_update, tmp_path / "back", base=base_of(tiny_source))
    back = read_tensors(tmp_path / "back")
    opened = Folder.open(tuned_update, base=base_of(tiny_source))
    for name, values in back.items():
        assert opened.tensor(name).tobytes() == values.tobytes(), name
    mapper = WeightMapper(opened)
    x = np.ones((1, 96), np.float32)
    assert np.allclose(mapper.matrix("h.0.attn.weight").times_transposed(x), x @ back["h.0.attn.weight"].T, rtol=1e-4)
    assert np.array_equal(mapper.decode_row("h.0.attn.weight", 7), back["h.0.attn.weight"][7])
    without = Folder.open(tuned_update)
    with pytest.raises(RBEError, match="open it with that as its base"):
        without.tensor("h.0.attn.weight")
    assert without.tensor("nothing").size == 0


def test_a_language_model_is_measured(rbe: Run, tmp_path: Path) -> None:
    """Of mini-gpt2 since itself: nothing is lost."""
    out = tmp_path / "update"
    assert rbe("compress", "mini-gpt2", "--base", "mini-gpt2", "-o", out, "-q").code == 0
    asked = ["bench", "model", out, "--quality-only", "--tokens", 500, "--json"]
    assert abs(rbe(*asked, "--base", "mini-gpt2").json()["kl_nats_per_token"]["value"]) < 1e-6
    refused = rbe(*asked)
    assert (refused.code, "give that with --base" in refused.complaint()) == (2, True)


def test_an_update_with_a_hole_is_corrupt(tuned_update: Path, tiny_source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tuned_update, tmp_path / "update"))
    (copy / "conv.rbe").unlink()
    with pytest.raises(CorruptFile, match=r"conv.rbe: missing"):
        decode_to(copy, tmp_path / "back", base=base_of(tiny_source))


def test_a_frozen_tensor_takes_next_to_nothing_on_a_coded_base(tmp_path: Path) -> None:
    """What a compressed base decodes to is trained on in part: what was not is stored as that, and told as it is."""
    rng = np.random.default_rng(5)
    save_file(
        {f"{name}.w": rng.standard_normal((90, 70)).astype(np.float32) for name in "ab"}, tmp_path / "m.safetensors"
    )
    compress_to(tmp_path / "m.safetensors", tmp_path / "base.rbe", bits=4)
    decode_to(tmp_path / "base.rbe", tmp_path / "decoded.safetensors")
    new = read_tensors(tmp_path / "decoded.safetensors")
    new["a.w"] = new["a.w"] + 0.01 * rng.standard_normal((90, 70)).astype(np.float32)
    save_file(new, tmp_path / "new.safetensors")
    base = base_of(tmp_path / "base.rbe")
    for wishes in ({"bits": 2.0}, {"nrmse": 0.01}, {"ratio": 20.0}):
        done = update(tmp_path / "new.safetensors", tmp_path / "u", tmp_path / "base.rbe", force=True, **wishes)
        frozen = next(tensor for tensor in done.manifest.tensors if tensor.name == "b.w")
        assert frozen.bytes < 250, wishes
        assert frozen.nrmse == 0
        assert not verify(tmp_path / "u", open_checkpoint(tmp_path / "new.safetensors"), base=base).problems


def test_a_base_that_is_of_no_use_is_noted(rbe: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    for name in ("new", "old"):
        save_file({"a.w": rng.standard_normal((50, 40)).astype(np.float32)}, tmp_path / f"{name}.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in ("new", "old")]
    done = rbe("compress", files[0], "--base", files[1], "--bits", 6, "-o", tmp_path / "u")
    assert done.code == 0
    assert "no tensor takes less against old.safetensors" in done.err
