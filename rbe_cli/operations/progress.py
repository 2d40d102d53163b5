"""How long operations tell what they are doing, and the threads they do it with."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

from threadpoolctl import threadpool_limits

from rbe_cli.errors import Interrupted


@contextmanager
def worker_threads(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose waiting jobs are dropped when something goes wrong or the user interrupts.

    When the user interrupts, those under way are not waited for: they may be at a minute of linear algebra, and write
    nothing.

    While it is there the linear algebra library has one thread: the work is parallel already, and its results must
    not depend on how many threads there are.
    """
    pool, wait = ThreadPoolExecutor(threads), True
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield pool
    except (KeyboardInterrupt, Interrupted):
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


class Progress(Protocol):
    """What a long operation tells as it goes on."""

    def phase(self, name: str, total: int) -> None:
        """A new phase begins, of `total` elements."""

    def advance(self, elements: int) -> None:
        """So many elements are done."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def detail(self, text: str) -> None:
        """Something a person should know who asked for everything."""


class Silent:
    """A Progress that tells nothing."""

    def phase(self, name: str, total: int) -> None:
        """Nothing."""

    def advance(self, elements: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def detail(self, text: str) -> None:
        """Nothing."""
