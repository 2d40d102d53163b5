"""File names for layers: every layer gets one, none leaves the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from rbe_cli.files.names import LAYER_SUFFIX, is_text

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_LONGEST = 160


def layer_of(tensor: str) -> str:
    """The layer a tensor belongs to: its name up to the last dot, or all of it.

    >>> layer_of("h.0.attn.c_attn.weight"), layer_of("logit_scale")
    ('h.0.attn.c_attn', 'logit_scale')
    """
    layer, dot, _ = tensor.rpartition(".")
    return layer if dot and layer else tensor


def file_names(layers: Iterable[str]) -> dict[str, str]:
    """A file name for every layer: its name, with what a file system could stumble over written %XX.

    Names that are long, or differ only by case, end in a part of their SHA-256.

    >>> file_names(["a.b", "../x"])
    {'a.b': 'a.b.rbe', '../x': '%2E.%2Fx.rbe'}
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for layer in layers:
        encoded = layer.encode("utf-8", "surrogatepass")
        name = "".join(chr(b) if chr(b) in _SAFE else f"%{b:02X}" for b in encoded)
        if not name:
            name = "%"
        elif name[0] in ".-":
            name = f"%{encoded[0]:02X}{name[1:]}"
        if len(name) > _LONGEST or name.casefold() in taken:
            name = f"{name[:_LONGEST]}~{hashlib.sha256(encoded).hexdigest()[:16]}"
        taken.add(name.casefold())
        names[layer] = name + LAYER_SUFFIX
    return names


def is_layer_file(path: str) -> bool:
    """Whether a path within a compressed folder may be that of a layer file.

    >>> is_layer_file("wte.rbe"), is_layer_file("old/wte.rbe"), is_layer_file("notes.txt")
    (True, False, False)
    """
    return "/" not in path and path.endswith(LAYER_SUFFIX)


def is_tensor_name(name: str) -> bool:
    """Whether a safetensors file can hold a tensor of this name.

    >>> is_tensor_name("wte.weight"), is_tensor_name("__metadata__"), is_tensor_name(chr(0xD800))
    (True, False, False)
    """
    return name != "__metadata__" and is_text(name)
