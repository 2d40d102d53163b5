"""File names for layers: every layer gets one, none leaves the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SUFFIX = ".rbe"
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_LONGEST = 160
#: Characters of a path, and of a part of it: no file system takes longer names.
_LONGEST_PATH, _LONGEST_PART = 1024, 255


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
        names[layer] = name + SUFFIX
    return names


def is_layer_file(path: str) -> bool:
    """Whether a path within a compressed folder may be that of a layer file.

    >>> is_layer_file("wte.rbe"), is_layer_file("old/wte.rbe"), is_layer_file("notes.txt")
    (True, False, False)
    """
    return "/" not in path and path.endswith(SUFFIX)


def is_tensor_name(name: str) -> bool:
    """Whether a safetensors file can hold a tensor of this name.

    >>> is_tensor_name("wte.weight"), is_tensor_name("__metadata__"), is_tensor_name(chr(0xD800))
    (True, False, False)
    """
    return name != "__metadata__" and is_text(name)


def is_text(text: str) -> bool:
    """Whether a string has a UTF-8 form: no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_plain(path: str) -> bool:
    """Whether a relative path from a manifest is safe to join to a folder: no way up, out, or to something hidden.

    >>> is_plain("1_Pooling/config.json"), is_plain("../x"), is_plain("/etc/passwd"), is_plain("a//b")
    (True, False, False, False)
    """
    if not path or len(path) > _LONGEST_PATH or "\\" in path or ":" in path or not path.isprintable():
        return False
    parts = path.split("/")
    if max(map(len, parts)) > _LONGEST_PART:
        return False
    return all(part and not part.startswith(".") and part == part.strip() for part in parts)
