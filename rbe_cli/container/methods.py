"""How a tensor is stored, as layer files and the manifest name it."""

from __future__ import annotations

#: Codecs whose weights are not those of the source, to the bit; in each there is at least one chunk.
LOSSY = ("trellis", "sparse", "lowrank")
#: How a tensor's chunks are to be read; `same` has none and stands for another tensor.
CODECS = (*LOSSY, "lossless", "same")
_SAME_AS = "same as "


def method_of(codec: str, same_as: str) -> str:
    """What the manifest says of a codec and, for `same`, the name of the tensor it stands for.

    >>> method_of("trellis", ""), method_of("same", "wte.weight")
    ('trellis', 'same as wte.weight')
    """
    return _SAME_AS + same_as if same_as else codec


def same_as_of(method: str) -> str:
    """The name of the tensor that a method stands for, if it is one to stand for another; else empty.

    >>> same_as_of("trellis"), same_as_of("same as wte.weight")
    ('', 'wte.weight')
    """
    return method.removeprefix(_SAME_AS) if method.startswith(_SAME_AS) else ""
