"""What a plan knows of an update before anything is encoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.codec.choice.wish import Wish
from rbe_cli.codec.residual.analysis import Analysis
from rbe_cli.codec.residual.forecast import multiplier_for_size
from rbe_cli.codec.residual.noise_shaping import Shaping
from rbe_cli.codec.source import Matrix
from rbe_cli.codec.tensor_codec import Choice
from rbe_cli.container.open_base import CheckpointBase
from rbe_cli.operations.compress import compress
from rbe_cli.operations.figures import total_error
from rbe_cli.operations.planning import Planner
from rbe_cli.operations.progress import Silent
from rbe_cli.operations.settings import Settings
from tests.synthetic import scaled_normal


def test_small_tensors_that_the_base_has_leave_their_room_to_the_others(tmp_path: Path) -> None:
    """Vectors are looked at for no size but with a base; there they may take next to nothing."""
    rng = np.random.default_rng(0)
    vectors = {f"h.{i}.bias": rng.standard_normal(512).astype(np.float32) for i in range(20)}
    old = scaled_normal((128, 128), 1).astype(np.float32)
    new = old + 0.05 * old.std() * rng.standard_normal(old.shape).astype(np.float32)
    save_file(vectors | {"h.0.weight": old}, tmp_path / "base.safetensors")
    save_file(vectors | {"h.0.weight": new}, tmp_path / "new.safetensors")
    base = CheckpointBase(open_checkpoint(tmp_path / "base.safetensors"))
    with ThreadPoolExecutor(1) as pool:
        planner = Planner(open_checkpoint(tmp_path / "new.safetensors"), Settings(bits=4.0), pool, Silent(), base)
        planner.plan()
    kept = [plan for plan in planner.plans if plan.info.name in vectors]
    assert sum(plan.exact_bytes for plan in kept) < 0.05 * sum(plan.info.nbytes for plan in kept)


class _Phases(Silent):
    def __init__(self) -> None:
        self.names: list[str] = []

    def phase(self, name: str, total: int) -> None:
        self.names.append(name)


@pytest.mark.parametrize("settings", [Settings(bits=2.0), Settings(bits=8.0, overrides=("weight=bits:2",))])
def test_steps_are_thought_of_as_fine_as_differences_make_them(tmp_path: Path, settings: Settings) -> None:
    """Structure is chosen once: at a step of the whole tensors it would be for steps 30 times too coarse."""
    old = scaled_normal((128, 128), 1).astype(np.float32)
    new = old + 0.03 * scaled_normal((128, 128), 2).astype(np.float32)
    save_file({"weight": old}, tmp_path / "base.safetensors")
    save_file({"weight": new}, tmp_path / "new.safetensors")
    base = CheckpointBase(open_checkpoint(tmp_path / "base.safetensors"))
    progress, steps = _Phases(), []
    with ThreadPoolExecutor(1) as pool:
        planner = Planner(open_checkpoint(tmp_path / "new.safetensors"), settings, pool, progress, base)
        choose = planner.choose

        def noted(matrix: Matrix, shaping: Shaping, wish: Wish, base: Matrix | None) -> Choice | None:
            steps.append(wish.step)
            return choose(matrix, shaping, wish, base)

        planner.choose = noted  # type: ignore[method-assign]
        planner.plan()
    assert progress.names == ["analysing"]
    assert len(steps) == 1
    (plan,) = planner.plans
    assert 0.02 < plan.changed < 0.04
    assert isinstance(plan.analysis, Analysis)
    size = 2.0 * old.size / 8
    step = plan.analysis.relative_step(multiplier_for_size([plan.analysis], size) * plan.analysis.unit)
    assert steps[0] == pytest.approx(step, rel=0.4)


@pytest.mark.parametrize("bits", [0.9, 1.35, 1.65, 2.1])
def test_structure_for_too_fine_steps_is_not_what_counts(tmp_path: Path, bits: float) -> None:
    """A merged LoRA: the finer the steps its factors are for, the finer they turn out, until factors are too large.

    The last look may be one at which they take more than the size asked for; an earlier one counts then.
    """
    shapes = 2 * [(128, 384), (128, 128), (128, 512), (512, 128)]
    old = {f"h.{i}.weight": scaled_normal(shape, i) for i, shape in enumerate(shapes)}
    new = {
        name: w + 0.3 * scaled_normal((w.shape[0], 16), i) @ scaled_normal((16, w.shape[1]), i + 9)
        for i, (name, w) in enumerate(old.items())
    }
    for name, tensors in (("base", old), ("new", new)):
        save_file({key: w.astype(np.float32) for key, w in tensors.items()}, tmp_path / f"{name}.safetensors")
    checkpoint = open_checkpoint(tmp_path / "new.safetensors")
    base = CheckpointBase(open_checkpoint(tmp_path / "base.safetensors"))
    done = compress(checkpoint, tmp_path / "update", Settings(bits=bits), base=base)
    error = total_error(done.manifest.tensors)
    assert 0.9 < 8 * done.size / sum(w.size for w in old.values()) / bits <= 1
    assert error.snr > 40 * bits
