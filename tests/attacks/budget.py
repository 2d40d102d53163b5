"""What reading a hostile file may take, beyond the interpreter and the compiled kernels (docs/robustness.md)."""

from __future__ import annotations

#: Whatever a file says.
CONSTANT = 300 << 20
#: Per byte of headers, manifests and indices: they become Python objects.
READING = 40
#: Processor time of one small hostile file.
CPU_SECONDS = 20


def allowed_memory(elements: int) -> int:
    """Bytes of resident memory for input whose largest tensor claims to have so many elements: three times float32."""
    return 12 * elements + CONSTANT
