"""The search for the steps that structure is chosen for."""

from __future__ import annotations

import math

import pytest

from rbe_cli.operations.looks import Looks


def test_it_goes_where_steps_turned_out() -> None:
    assert Looks().next(1.0, 3.0) == 8
    assert Looks().next(8.0, -2.0) == 2
    assert Looks().next(1.0, 99.0) == 2**20, "no further than that"
    assert Looks().next(8.0, -11.6) == 2, "nor back, where structure took all the bytes"


def test_it_stays_between_finer_and_coarser() -> None:
    looks = Looks()
    assert looks.next(2.0, 4.0) == 32
    assert looks.next(32.0, -4.0) == pytest.approx(8), "half way, not where it was"
    assert looks.next(8.0, 3.0) == pytest.approx(16), "nor beyond what was too fine"


@pytest.mark.parametrize("turn", [0.3, -0.3, 2.5, -2.5, 30.0, -30.0])
def test_it_goes_somewhere_whatever_comes(turn: float) -> None:
    looks, thought = Looks(), 1.0
    for i in range(20):
        thought = looks.next(thought, turn if i % 3 else -turn)
        assert 0 < thought < math.inf
