"""The parameters of one trellis-coded tensor, as they stand at the head of its first chunk.

Little-endian, `SIZE` bytes, followed by the row axis (`row_bytes` long) and the column axis (`column_bytes`) of the
scale field, by the axes of importance that there are, each after its length (u32), and by what the structure and the
transform need (`rbe_cli.codec.structure.pipeline`).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from rbe_cli.codec.tiles import Grid, plausible_tile
from rbe_cli.errors import Damage

_LAYOUT = struct.Struct("<BBBBBBBBhHfQIIffII")
SIZE = _LAYOUT.size
_BY_COLUMNS, _ROW_IMPORTANCE, _COLUMN_IMPORTANCE = 1, 2, 4
_FLAGS = 7
#: Shaping exponents are this many to one.
SHAPING_UNIT = 16
_FAMILIES = 3
#: Rows, or columns, at most: a scale field of more would not be held in memory with ease.
LONGEST_AXIS = 1 << 26
#: Names of the structures and transforms; the place in the list is the identifier in the parameters.
STRUCTURES = ("none", "lowrank")
TRANSFORMS = ("none", "dct", "dwt", "klt")
#: What a user may ask for, a transform or a structure; `auto` chooses.
CHOICES = ("auto", *TRANSFORMS, *STRUCTURES[1:])
#: Which transforms work on blocks, and how large these may be.
_BLOCKWISE = (1, 2)
_LARGEST_BLOCK = 1024
#: Widest matrix a Karhunen-Loeve basis is sent for.
KLT_COLUMNS = 4096


@dataclass(frozen=True)
class Parameters:
    """What a decoder has to know of a tensor besides its shape and type.

    Attributes
    ----------
    structure, transform : int
        Which structure is added, and which transform the residual is in; 0 is none.
    block, levels : int
        Of a blockwise transform; 0 without one.
    by_columns : bool
        Order of the elements inside a tile.
    states : int
        Of the trellis, 4 to 256.
    family : int
        Of the frequency tables.
    row_shaping, column_shaping : int
        gr and gc in sixteenths: the step of a row is 2^(A / 8) times the tensor's, A = (gr E + 8) >> 4.
    base : int
        Class of an element whose row and column classes are 0.
    step : float
        Quantisation step, a float32.
    grid : Grid
        The rows x columns view and how it is cut into tiles.
    rms, nrmse : float
        Root mean square of the original weights and relative error of the decoded ones; for people, not for decoding.
    row_bytes, column_bytes : int
        Lengths of the axes.
    row_importance, column_importance : bool
        Whether an axis of importance follows, for rows and for columns: since version 2.
    """

    by_columns: bool
    states: int
    family: int
    row_shaping: int
    column_shaping: int
    base: int
    step: float
    grid: Grid
    rms: float
    nrmse: float
    row_bytes: int
    column_bytes: int
    structure: int = 0
    transform: int = 0
    block: int = 0
    levels: int = 0
    row_importance: bool = False
    column_importance: bool = False

    @property
    def plain(self) -> bool:
        """No structure, no transform, no importance."""
        return not (self.structure or self.transform or self.row_importance or self.column_importance)

    @property
    def version(self) -> int:
        """The lowest version of the format that can read what they stand before."""
        return 2 if self.row_importance or self.column_importance else 1

    def pack(self) -> bytes:
        """The SIZE bytes."""
        return _LAYOUT.pack(
            self.structure,
            self.transform,
            _BY_COLUMNS * self.by_columns
            | _ROW_IMPORTANCE * self.row_importance
            | _COLUMN_IMPORTANCE * self.column_importance,
            self.states.bit_length() - 1,
            self.family,
            self.row_shaping,
            self.column_shaping,
            self.levels,
            self.base,
            self.block,
            self.step,
            self.grid.rows,
            self.grid.height,
            self.grid.width,
            self.rms,
            self.nrmse,
            self.row_bytes,
            self.column_bytes,
        )

    @classmethod
    def unpack(cls, data: bytes, elements: int) -> Parameters:
        """Read and check them for a tensor of so many elements. Raises Damage."""
        if len(data) < SIZE:
            raise Damage("parameters are cut short")
        (
            structure, transform, flags, log_states, family, row_shaping, column_shaping, levels, base, block,
            step, rows, height, width, rms, nrmse, row_bytes, column_bytes,
        ) = _LAYOUT.unpack_from(data)  # fmt: skip
        if structure >= len(STRUCTURES) or transform >= len(TRANSFORMS) or flags > _FLAGS:
            raise Damage("parameters ask for what this version does not have")
        if not 2 <= log_states <= 8 or family >= _FAMILIES or max(row_shaping, column_shaping) > SHAPING_UNIT:
            raise Damage("parameters are out of range")
        if not (math.isfinite(step) and step > 0 and math.isfinite(rms) and rms >= 0 and 0 <= nrmse < math.inf):
            raise Damage("parameters hold a number that makes no sense")
        if rows < 1 or elements < 1 or elements % rows:
            raise Damage("parameters do not fit the tensor's shape")
        columns = elements // rows
        if max(rows, columns) > LONGEST_AXIS:
            raise Damage("parameters hold an impossible shape")
        if not 1 <= width <= columns or not 1 <= height <= rows or (height > 1 and width != columns):
            raise Damage("parameters hold an impossible tile")
        wavelet = TRANSFORMS[transform] == "dwt"
        if bool(block) != (transform in _BLOCKWISE) or levels > 16 * wavelet or block > _LARGEST_BLOCK:
            raise Damage("parameters hold an impossible block")
        if (structure or transform) and (width != columns or (block and height < rows and height % block)):
            raise Damage("parameters hold a tile that does not fit the transform")
        if not plausible_tile(height, width, block, columns):
            raise Damage("parameters hold an impossible tile")
        if row_bytes + column_bytes > len(data) - SIZE:
            raise Damage("parameters are cut short")
        grid = Grid(rows, columns, height, width)
        return cls(
            bool(flags & _BY_COLUMNS), 1 << log_states, family, row_shaping, column_shaping, base, step, grid,
            rms, nrmse, row_bytes, column_bytes, structure, transform, block, levels,
            bool(flags & _ROW_IMPORTANCE), bool(flags & _COLUMN_IMPORTANCE),
        )  # fmt: skip


#: Head of a tensor of the codec `sparse`: transform (1 dct, 2 dwt), levels, basis functions or not, 0, block u16,
#: 0 u16, step, rms, nrmse, rows u64, tile height u32.
SPARSE_HEAD = struct.Struct("<BBBBHHfffQI")
#: Head of a tensor of the codec `lowrank`: rows u64, rms, nrmse.
LOW_RANK_HEAD = struct.Struct("<Qff")


def recorded_error(codec: str, first_chunk: bytes, elements: int) -> tuple[float, float]:
    """RMS of the original and relative error, as the first chunk of a lossily coded tensor says. Raises Damage."""
    try:
        if codec == "sparse":
            rms, nrmse = SPARSE_HEAD.unpack_from(first_chunk)[7:9]
        elif codec == "lowrank":
            rms, nrmse = LOW_RANK_HEAD.unpack_from(first_chunk)[1:3]
        else:
            parameters = Parameters.unpack(first_chunk, elements)
            rms, nrmse = parameters.rms, parameters.nrmse
    except struct.error:
        raise Damage("first chunk is cut short") from None
    if not (math.isfinite(rms) and rms >= 0 and math.isfinite(nrmse) and nrmse >= 0):
        raise Damage("first chunk holds an error that makes no sense")
    return rms, nrmse
