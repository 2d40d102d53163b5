"""The plan of one tensor: how it is going to be coded, and what it is going to take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rbe_cli import dtypes
from rbe_cli.checkpoint.reader import TensorInfo
from rbe_cli.codec.parameters import LONGEST_AXIS
from rbe_cli.codec.residual.forecast import AtMost, Forecast
from rbe_cli.codec.residual.rate_control import OwnGoal
from rbe_cli.codec.residual.trellis_codec import MAX_INDEX
from rbe_cli.codec.source import Matrix, view_shape
from rbe_cli.codec.tensor_codec import Choice
from rbe_cli.container.base import BaseTensor
from rbe_cli.operations.settings import EXACT, EXACT_BELOW, Goal

#: The share of its bytes that a floating tensor takes kept exactly, about.
EXACT_SHARE = 0.85
#: How near a look at it comes; and a share that it does not take, if nothing is known.
_NEARLY, _SURELY_LESS = 0.95, 0.6


@dataclass
class Plan:
    """How one tensor is going to be coded.

    Attributes
    ----------
    shard : int
        Number of the file it is in.
    choice : Choice or None
        How it is coded; None is exact.
    goal : Goal
        What is asked of it.
    same_as : str
        An identical tensor that is stored already.
    exact_bytes : float
        About what it takes kept exactly; infinity where that is known to be more than what it is going to take.
    tolerance : float
        How far below its goal it may stay, relative.
    base : BaseTensor or None
        The base's tensor of the same name and shape.
    changes : bool or None
        Kept exactly, it is stored as what differs from the base: that takes less. None is not known yet.
    unchanged : bool
        It is the base's tensor, byte for byte, on every machine.
    changed : float
        How large its difference to the base is, relative to itself, at most 1: by the RMS of some rows.
    analyse_ns : int
        Processor time it took to find out.
    """

    shard: int
    info: TensorInfo
    tolerance: float
    choice: Choice | None = None
    goal: Goal = EXACT
    same_as: str = ""
    exact_bytes: float = math.inf
    base: BaseTensor | None = None
    changes: bool | None = None
    unchanged: bool = False
    changed: float = 1.0
    analyse_ns: int = 0

    @property
    def analysis(self) -> Forecast | None:
        """Of the pipeline that was chosen."""
        return self.choice.analysis if self.choice else None

    @property
    def may_change(self) -> bool:
        """Whether it is looked at to be approximated."""
        info = self.info
        return (
            self.goal.kind not in ("lossless", "skip")
            and not self.same_as
            and not self.unchanged
            and info.dtype in dtypes.FLOATS
            and len(info.shape) > 1
            and info.elements >= EXACT_BELOW
            and max(view_shape(info.shape)) <= LONGEST_AXIS
        )

    @property
    def expected(self) -> AtMost | None:
        """What it is going to take, coded or kept exactly."""
        if self.analysis is None:
            return None
        most = min(self.exact_bytes, EXACT_SHARE * self.info.nbytes)
        return AtMost(self.analysis, most, self.analysis.largest / MAX_INDEX)

    def may_be_less_exactly(self, size: float) -> bool:
        """Whether it may take less than so many bytes kept exactly."""
        return size >= min(_NEARLY * self.exact_bytes, _SURELY_LESS * self.info.nbytes)

    def base_matrix(self, matrix: Matrix) -> Matrix | None:
        """That of the base as rows x columns like the tensor's own; None if it has none that can be taken from it."""
        if self.base is None or self.base.dtype not in dtypes.FLOATS:
            return None
        return self.base.matrix(matrix.rows, matrix.columns)

    def is_based(self, method: str) -> bool:
        """Whether it is stored against its base, if it is with this method."""
        return bool(self.changes) if method == "lossless" else bool(self.choice and self.choice.based)

    def fingerprint(self, method: str) -> str:
        """That of the base's tensor, if it is stored against it; else empty."""
        return self.base.fingerprint if self.base and self.is_based(method) else ""

    @property
    def shares(self) -> bool:
        """Whether it has the step that others have."""
        return self.analysis is not None and self.goal.kind == "shared"

    @property
    def own_goal(self) -> OwnGoal | None:
        """The goal of a tensor that does not share the others' step."""
        expected = self.expected
        if expected is None or self.shares:
            return None
        return OwnGoal(expected, self.info.elements, self.goal.kind, self.goal.value, self.tolerance)


def goal_multiplier(plan: Plan, shared: float) -> float:
    """The multiplier a tensor starts with: `shared`, or the one its own goal asks for."""
    goal = plan.own_goal
    return shared if goal is None else goal.first()
