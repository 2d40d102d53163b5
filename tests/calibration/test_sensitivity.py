"""Sensitivity of a model to each tensor, the file of overrides, and what compress makes of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from rbe_cli.calibration.observed import ObservedGPT2
from rbe_cli.container.folder import Folder
from rbe_cli.errors import UsageError
from rbe_cli.layers.gpt2 import GPT2
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.model_quality import divergence, turned
from rbe_cli.operations.presets import read_overrides
from rbe_cli.operations.sensitivity import Sensitivities, measure_sensitivity, suggest, write_overrides
from rbe_cli.operations.settings import Settings
from tests.command_line import Run
from tests.layers import tiny_gpt2
from tests.synthetic import compress_to, read_tensors

LIMIT = 200


@pytest.fixture(scope="module")
def found(gpt2: Path, text: Path) -> Sensitivities:
    return measure_sensitivity(str(gpt2), text=text, limit=LIMIT, settings=Settings(bits=3.0, effort=0))


def test_losses_are_those_of_models_with_one_tensor_changed(
    gpt2: Path, text: Path, tmp_path: Path, found: Sensitivities
) -> None:
    compress_to(gpt2, tmp_path / "m.rbe", bits=3.0, effort=0, overrides=(".=bits:+0",))
    coarse = Folder.open(tmp_path / "m.rbe")
    settings, weights = tiny_gpt2.config(), read_tensors(gpt2)
    data = text.read_bytes()
    starts = range(0, len(data), 48)
    # Windows from everywhere in the text: the first, and then whenever fewer were read than the text's share.
    read, seen, taken = [], 0, 0
    for start in starts:
        part = list(data[start : start + 48])
        if taken * len(data) <= LIMIT * seen and taken < LIMIT:
            read.append(part[: LIMIT - taken])
            taken += len(read[-1])
        seen += len(part)
    assert found.tokens == taken
    for name in ("transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"):
        changed = weights | {name: coarse.tensor(name)}
        sums = []
        for tokens in read:
            log_p, log_q = (
                logits - np.log(np.exp(logits).sum(1, keepdims=True))
                for logits in (tiny_gpt2.naive_logits(w, settings, tokens) for w in (weights, changed))
            )
            sums.append((np.exp(log_p) * (log_p - log_q)).sum())
        one = next(tensor for tensor in found.tensors if tensor.name == name)
        assert one.loss.value == pytest.approx(sum(sums) / taken, rel=1e-2)
        assert one.elements == weights[name].size


def test_the_model_is_the_same_after_it(gpt2: Path) -> None:
    files = ModelFiles.open(str(gpt2))
    model, tokens = ObservedGPT2(files), np.arange(20)[None]
    before = model.answers(tokens)
    with model.altered("transformer.wte.weight", np.zeros((256, 40), np.float32)):
        assert not model.answers(tokens).any()
    assert (model.answers(tokens) == before).all()
    assert (GPT2.load(files).logits(tokens) == before).all()


def test_suggested_bits_make_the_sum_of_losses_least() -> None:
    """No exchange of bits between two tensors is better, in the model loss = s 4^(-1.43 b); and the mean stays."""
    rng = np.random.default_rng(0)
    losses = {str(n): (float(rng.uniform(1, 9)), 0.0, n) for n in range(10, 70, 10)}
    bits = suggest(losses)

    def total(bits: dict[str, float]) -> float:
        return sum(s * 4 ** (-bits[name] / 0.7) for name, (s, _, _) in losses.items())

    assert sum(bits[name] * n for name, (_, _, n) in losses.items()) == pytest.approx(0, abs=0.01 * 210)
    for a in losses:
        for b in losses:
            moved = dict(bits)
            moved[a] += 0.05 / losses[a][2] * 10
            moved[b] -= 0.05 / losses[b][2] * 10
            assert a == b or total(moved) >= total(bits) - 1e-4 * total(bits)
    assert total(bits) < total(dict.fromkeys(losses, 0.0))


def test_noise_and_extremes_stay_within_reach() -> None:
    bits = suggest({"loud": (1e5, 0.0, 10), "silent": (0.0, 0.0, 1000), "noisy": (-1e-9, 2.0, 1000)})
    assert bits["loud"] == 4
    assert bits["silent"] == 0
    assert -1 <= bits["noisy"] < 0
    assert suggest({"a": (0.0, 0.0, 5), "b": (0.0, 0.0, 5)}) == {"a": 0, "b": 0}


def test_the_file_of_overrides(found: Sensitivities, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    write_overrides(path, found)
    first = path.read_bytes()
    write_overrides(path, found)
    assert path.read_bytes() == first
    assert list(tomllib.loads(first.decode())) == ["overrides"]
    settings = Settings(bits=3.0, overrides=read_overrides(path))
    for tensor in found.tensors:
        assert settings.goal(tensor.name, 1.0).kind == "shared"
        assert settings.finer(tensor.name, 1e-3) == pytest.approx(2**tensor.more_bits)
    assert settings.finer("other.wte.weight", 1e-3) == 4


def test_what_compress_makes_of_it(rbe: Run, gpt2: Path, text: Path, found: Sensitivities, tmp_path: Path) -> None:
    """At the same size, tensors that matter more have a smaller error than without."""
    path = tmp_path / "s.toml"
    write_overrides(path, found)
    shown = {}
    for name, wishes in (("plain", ["--override", ".=bits:+0"]), ("felt", ["--overrides", path])):
        done = rbe("compress", gpt2, "--bits", 6, "--effort", 0, *wishes, "-o", tmp_path / name, "--json", "-q")
        assert done.code == 0, done.err
        shown[name] = done.json()
        assert 5.9 < shown[name]["totals"]["bits_per_weight"] <= 6
    error = {name: {t["name"]: t["nrmse"] for t in document["tensors"]} for name, document in shown.items()}
    ordered = sorted(found.tensors, key=lambda tensor: tensor.more_bits)
    assert error["felt"][ordered[0].name] > error["plain"][ordered[0].name]
    assert error["felt"][ordered[-1].name] < error["plain"][ordered[-1].name]


def test_the_command(rbe: Run, gpt2: Path, text: Path, tmp_path: Path) -> None:
    done = rbe(
        "calibrate", gpt2, "--text", text, "--tokens", 240, "-o", tmp_path / "i.safetensors",
        "--sensitivity", tmp_path / "s.toml", "--json", "-q",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = done.json()["sensitivity"]
    assert document["figure"] == "KL, nats per token"
    assert 0 < document["tokens"] <= 60
    assert len(document["tensors"]) == 10
    assert len(read_overrides(tmp_path / "s.toml")) == 10


def test_relative_overrides() -> None:
    settings = Settings(nrmse=0.1, overrides=("a=bits:+1", "b=bits:-2", "c=bits:5"), exclude=("ax",))
    assert [settings.goal(name, 1.0) for name in ("a", "b", "c", "d", "ax")] == [
        ("nrmse", 0.05), ("nrmse", 0.4), ("bits", 5.0), ("nrmse", 0.1), ("lossless", 0.0),
    ]  # fmt: skip
    assert Settings(rmse=0.1, overrides=("a=bits:+1",)).goal("a", 0.5) == ("nrmse", 0.1)
    for wrong in ("a=bits:+17", "a=bits:+", "a=bits:+nan", "a=nrmse:+-1"):
        with pytest.raises(UsageError, match="--override"):
            Settings(overrides=(wrong,))


def test_files_of_overrides_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    for content, message in (
        ("bits = 4", "unknown key 'bits'"), ("", "has the wrong type"), ("overrides = 'a'", "has the wrong type"),
        ("overrides = [", "not TOML"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            read_overrides(path)


def test_distances() -> None:
    p, q = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32), np.log(np.array([[1.0, 3.0], [1.0, 3.0]], np.float32))
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    share = np.e / (1 + np.e)
    second = share * np.log(share / 0.25) + (1 - share) * np.log((1 - share) / 0.75)
    assert divergence(p, q) == pytest.approx(first + second, rel=1e-6)
    assert turned(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])) == pytest.approx([1 - 24 / 25])
