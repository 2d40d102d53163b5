"""What files may be called, and what those are called that rbe writes."""

from __future__ import annotations

#: Of a compressed folder: what says what is in it, and how its layer files' names end.
MANIFEST, LAYER_SUFFIX = "rbe.json", ".rbe"
#: Characters of a path, and of a part of it: no file system takes longer names.
_LONGEST_PATH, _LONGEST_PART = 1024, 255


def is_text(text: str) -> bool:
    """Whether a string has a UTF-8 form: no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_plain(path: str) -> bool:
    """Whether a relative path from a file is safe to join to a folder: no way up, out, or to something hidden.

    >>> is_plain("1_Pooling/config.json"), is_plain("../x"), is_plain("/etc/passwd"), is_plain("a//b")
    (True, False, False, False)
    """
    if not path or len(path) > _LONGEST_PATH or "\\" in path or ":" in path or not path.isprintable():
        return False
    parts = path.split("/")
    if max(map(len, parts)) > _LONGEST_PART:
        return False
    return all(part and not part.startswith(".") and part == part.strip() for part in parts)
