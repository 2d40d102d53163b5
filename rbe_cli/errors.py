"""Every error the package raises on purpose.

RBEError                    exit code 1: cannot do what was asked
|-- UsageError              exit code 2: the wish itself is wrong
|-- OverBudget              exit code 3: done, but a bound the user gave is broken
|-- CorruptFile             exit code 4: truncated, damaged or hostile input
|   |-- Damage              the same from a stage that does not know which file it is reading
|-- Interrupted             exit code 130: stopped by the user, and what is finished is kept
Each message is one line that names the file or tensor and says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RBEError(Exception):
    """What was asked cannot be done; the message says why and what to do."""

    exit_code = 1


class UsageError(RBEError):
    """The settings contradict each other or are out of range."""

    exit_code = 2


class OverBudget(RBEError):
    """What was asked is done and its figures are told, but a bound is broken."""

    exit_code = 3


class Interrupted(RBEError):
    """The user stopped it, and what is finished is kept."""

    exit_code = 130


class CorruptFile(RBEError):
    """A file is truncated, damaged or not what it claims to be."""

    exit_code = 4


class Damage(CorruptFile):
    """What is wrong, said by a stage that has only bytes; `located` adds where."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Turn Damage raised inside into a CorruptFile that names the file and tensor."""
    try:
        yield
    except Damage as damage:
        raise CorruptFile(f"{where}: {damage}") from None
    except MemoryError:
        raise CorruptFile(f"{where}: asks for more memory than there is") from None


def first_line(error: BaseException) -> str:
    r"""What an error of a library says, in a line; its name if it says nothing.

    >>> first_line(ValueError("no such thing\nat all")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
