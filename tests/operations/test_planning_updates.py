"""What a plan knows of an update before anything is encoded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rbe_cli.checkpoint.base import CheckpointBase
from rbe_cli.checkpoint.reader import open_checkpoint
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
