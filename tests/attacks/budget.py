"""What reading a hostile file may take."""

from __future__ import annotations

#: Beyond the interpreter and the compiled kernels, whatever a file says (docs/robustness.md).
CONSTANT = 300 << 20


def allowed_memory(largest_tensor: int) -> int:
    """Bytes of resident memory for input whose largest tensor claims to have so many bytes."""
    return 3 * largest_tensor + CONSTANT
