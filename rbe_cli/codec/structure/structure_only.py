"""Structure without a coded residual: what `sparse_analysis` and `low_rank_codec` have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import copy
from typing import Self

from rbe_cli.codec.residual.analysis import Analysis
from rbe_cli.codec.residual.trellis_codec import Encoded
from rbe_cli.codec.source import Matrix


class StructureAnalysis(ABC):
    """What is known before it has a step of a matrix of which the structure is all that is stored: a `Forecast`.

    Attributes
    ----------
    matrix : Matrix
    energy : float
        Sum of squares; of a difference to a base, that of the tensor.
    rms, unit : float
        Its mean's root; steps are multiples of it.
    largest : float
        Largest of all numbers to be sent.
    """

    largest: float

    def __init__(self, matrix: Matrix, energy: float) -> None:
        self.matrix = matrix
        self.energy = energy
        self.rms = self.unit = math.sqrt(energy / (matrix.rows * matrix.columns))

    def of_tensor(self, plain: Analysis) -> Self:
        """The same for a matrix that is the difference of a tensor to its base: errors are relative to the tensor."""
        analysis = copy(self)
        analysis.energy, analysis.rms, analysis.unit = plain.energy, plain.rms, plain.rms
        return analysis

    @abstractmethod
    def set_aside(self) -> None:
        """Put by what grows with the tensor."""

    @abstractmethod
    def expected_bytes(self, step: float) -> float:
        """Size of the chunks at a step."""

    @abstractmethod
    def expected_error(self, step: float) -> float:
        """Sum of squared errors at a step."""

    @abstractmethod
    def encode(self, step: float) -> Encoded:
        """Code it with a step."""
