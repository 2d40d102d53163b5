"""Decoded tiles kept under a byte budget: those that are used most.

A forward pass walks through all tiles in the same order every time. A cache that keeps what was used last would drop
each tile just before it is wanted again; one that goes by frequency keeps a fixed part of the model and hits on it
every time.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

#: All counts are halved when a tile has been asked for so many times on average, so that old fame fades.
_FADE_AFTER = 256


class TileCache:
    """Tiles by key, at most `budget` bytes of them, the most used ones. Safe to use from several threads.

    A tile that does not fit takes the place of others only if each of them was asked for less often.

    Parameters
    ----------
    budget : int
        Bytes of decoded weights that may be held; 0 keeps nothing.

    Attributes
    ----------
    held : int
        Bytes held now.
    hits, misses : int
        Times a tile was asked for and was there, or was not.

    Examples
    --------
    >>> cache = TileCache(budget=8)
    >>> cache.offer("a", np.zeros(2, np.float32))
    >>> cache.get("a"), cache.get("b"), cache.hits, cache.misses
    (array([0., 0.], dtype=float32), None, 1, 1)
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held = 0
        self.hits = 0
        self.misses = 0
        self._tiles: dict[Hashable, NDArray[np.float32]] = {}
        self._uses: dict[Hashable, int] = {}
        self._asked = 0
        # (uses, order, key) of every held tile; uses may be out of date, and only ever too low.
        self._least: list[tuple[int, int, Hashable]] = []
        self._order = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tiles)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tiles

    def get(self, key: Hashable) -> NDArray[np.float32] | None:
        """A tile to read (never to write), or None. Counts the use either way."""
        with self._lock:
            self._uses[key] = self._uses.get(key, 0) + 1
            self._asked += 1
            if self._asked > _FADE_AFTER * len(self._uses):
                self._fade()
            tile = self._tiles.get(key)
            if tile is None:
                self.misses += 1
            else:
                self.hits += 1
            return tile

    def offer(self, key: Hashable, tile: NDArray[np.float32]) -> None:
        """Keep a copy of a tile that was just decoded, if it is used more than what it would push out."""
        if tile.nbytes > self.budget:
            return
        with self._lock:
            if key in self._tiles or not self._make_room(self._uses.get(key, 0), tile.nbytes):
                return
            copy = tile.copy()
            copy.flags.writeable = False
            self._tiles[key] = copy
            self.held += copy.nbytes
            self._push(key)

    def clear_counts(self) -> None:
        """Set hits and misses to 0; the tiles and how often they were used stay."""
        with self._lock:
            self.hits = self.misses = 0

    def _push(self, key: Hashable) -> None:
        self._order += 1
        heapq.heappush(self._least, (self._uses.get(key, 0), self._order, key))

    def _make_room(self, uses: int, size: int) -> bool:
        """Drop tiles used less than `uses` until `size` bytes fit; drop none if they would not suffice."""
        victims: list[tuple[int, int, Hashable]] = []
        free = self.budget - self.held
        while free < size and self._least:
            known, order, key = heapq.heappop(self._least)
            now = self._uses.get(key, 0)
            if now != known:
                heapq.heappush(self._least, (now, order, key))
                continue
            victims.append((known, order, key))
            if now >= uses:
                break
            free += self._tiles[key].nbytes
        if free < size:
            for victim in victims:
                heapq.heappush(self._least, victim)
            return False
        for _, _, key in victims:
            self.held -= self._tiles.pop(key).nbytes
        return True

    def _fade(self) -> None:
        self._uses = {key: uses // 2 for key, uses in self._uses.items() if uses > 1 or key in self._tiles}
        self._asked = sum(self._uses.values())
        self._least = [(self._uses.get(key, 0), order, key) for _, order, key in self._least]
        heapq.heapify(self._least)
