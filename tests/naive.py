"""Slow, plain twins of every kernel: what the kernels must do, written to be read.

Python integers wherever the kernels have fixed-width ones, and numpy float32 scalars one operation at a time where the
order of rounding matters. Each returns exactly, bit for bit, what its kernel does.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from tests.reference_decoder import RangeDecoder, Refused, read_number

LANES = 8
#: Ungerboeck's parity polynomials, octal as in the literature: states -> (h0, h1).
POLYNOMIALS = {4: ("5", "2"), 8: ("13", "4"), 16: ("23", "4"), 32: ("45", "10"), 64: ("103", "24"),
               128: ("235", "126"), 256: ("515", "362")}  # fmt: skip
_F = np.float32
#: Cost of what must not happen.
NO_PATH = _F(1e30)


# The trellis


def next_state(states: int, s: int, z: int) -> int:
    """State after a symbol of parity z in state s."""
    h0, h1 = (int(polynomial, 8) >> 1 for polynomial in POLYNOMIALS[states])
    return (s >> 1) ^ (h1 if z else 0) ^ (h0 if s & 1 else 0)


def raw_bits(c: int, coded: int) -> int:
    """Low bits of k sent as they are in class c: one for each 8 classes above `coded`."""
    return -(-max(c - coded, 0) // 8)


def symbol_of(v: np.float32, c: int, r: int, higher: bool) -> int:
    """The symbol k whose point 2 k + u, n = r mod 4, is the next below v, or the `higher` one of the two around it."""
    if c in (0, 255):
        return r >> 1
    quarter = np.floor(v * _F(0.25))
    below = v - _F(4) * quarter < _F(r)
    return 2 * int(quarter) + (r >> 1) - (2 if below else 0) + (2 if higher else 0)


def branch_choices(v: np.float32, c: int, coded: int, price: np.ndarray) -> list[tuple[np.float32, int]]:
    """(cost, k) of the cheapest symbol of each subset n mod 4; `price` is float32[C, 2 R + 1, 2, 2].

    Class 0 has no symbol but k = 0, whatever the union, and that costs nothing.
    """
    if c == 0:
        return [(_F(0), 0), (_F(0), 0), (NO_PATH, 1), (NO_PATH, 1)]
    reach = price.shape[1] // 2
    m = raw_bits(c, coded)
    table = price[c - 8 * m]
    quarter = np.floor(v * _F(0.25))
    rest = v - _F(4) * quarter
    q = 2 * int(quarter)
    fast = m == 0 and q - 2 > -reach and q + 3 < reach
    choices = []
    for r in range(4):
        union, below = r & 1, rest < _F(r)
        low = symbol_of(v, c, r, False)
        candidates = []
        for k in (low, low + 2):
            at = min(max(k >> m, -reach), reach) + reach
            near = rest - _F(r) + _F(4 if below else 0) - _F(0 if k == low else 4)
            error = near if fast else v - _F(2 * k + union)
            if m == 0:
                error = error - table[at, union, 0]
            candidates.append((error * error + table[at, 1 if m else union, 1], k))
        choices.append(candidates[1] if candidates[1][0] < candidates[0][0] else candidates[0])
    return choices


def search_lane(
    x: Sequence[np.float32], classes: Sequence[int], coded: int, price: np.ndarray, states: int, start: int = 0
) -> tuple[list[int], list[int]]:
    """Symbols and unions of the cheapest path of one lane from a state: dynamic programming, all paths kept whole."""
    metric = {s: _F(0) if s == start else NO_PATH for s in range(states)}
    path: dict[int, list[tuple[int, int]]] = {s: [] for s in range(states)}
    for t, (v, c) in enumerate(zip(x, classes, strict=True)):
        choices = [(_F(0), r >> 1) for r in range(4)] if c == 255 else branch_choices(v, int(c), coded, price)
        advanced: dict[int, np.float32] = {}
        longer: dict[int, list[tuple[int, int]]] = {}
        for z in (0, 1):
            for s in range(states):
                to = next_state(states, s, z)
                cost, k = choices[(s & 1) + 2 * z]
                total = metric[s] + cost
                # Parity 0 has been looked at first and wins a tie.
                if to not in advanced or total < advanced[to]:
                    advanced[to], longer[to] = total, [*path[s], (k, s & 1)]
        metric, path = advanced, longer
        if t % 64 == 63:
            base = metric[0]
            metric = {s: value - base for s, value in metric.items()}
    best = min(range(states), key=lambda s: (metric[s], s))
    return [k for k, _ in path[best]], [union for _, union in path[best]]


def add_fed_back(errors: np.ndarray, factor: np.ndarray, j: int, start: np.ndarray) -> np.ndarray:
    """What column j takes of the errors of those before it, four at a time, added to `start`."""
    out = [_F(v) for v in start]
    for i in range(len(out)):
        terms = [_F(factor[j, k]) * _F(errors[k, i]) for k in range(j)]
        while len(terms) >= 4:
            a, b, c, d, *terms = terms
            out[i] += (a + b) + (c + d)
        for term in terms:
            out[i] += term
    return np.array(out, np.float32)


def fed_search(
    w: np.ndarray,
    factor: np.ndarray,
    scale: np.ndarray,
    classes: np.ndarray,
    coded: int,
    price: np.ndarray,
    states: int,
    window: int,
    ahead: int,
) -> list[int]:
    """Symbols of one tile float32[inputs, width] in coding order, with feedback: one window after another.

    scale : float32[inputs], the step of each input's weights; classes : uint8[T, lanes].
    """
    inputs, width = w.shape
    steps, lanes = classes.shape
    errors = np.zeros_like(w)
    symbols, unions = np.zeros((steps, lanes), int), np.zeros((steps, lanes), int)
    state = [0] * lanes
    start = 0
    while start < steps:
        stop = min(start + window, steps)
        keep = steps if stop == steps else stop - ahead
        x = np.zeros((stop - start, lanes), np.float32)
        for t in range(start * lanes, min(stop * lanes, inputs * width)):
            j, i = divmod(t, width)
            fed = add_fed_back(errors[:, i : i + 1], factor, j, w[j, i : i + 1])[0]
            x[t // lanes - start, t % lanes] = fed / scale[j]
        for lane in range(lanes):
            found = search_lane(x[:, lane], classes[start:stop, lane], coded, price, states, state[lane])
            for t, (k, union) in enumerate(zip(*found, strict=True), start):
                if t < keep:
                    symbols[t, lane], unions[t, lane] = k, union
                    state[lane] = next_state(states, state[lane], k & 1)
        for t in range(start * lanes, min(keep * lanes, inputs * width)):
            j, i = divmod(t, width)
            row, lane = divmod(t, lanes)
            k, union, reach = symbols[row, lane], unions[row, lane], price.shape[1] // 2
            shift = price[classes[row, lane], min(max(k, -reach), reach) + reach, union, 0]
            errors[j, i] = w[j, i] - (_F(2 * k + union) + _F(shift)) * scale[j]
        start = keep
    return [int(k) for k in symbols.ravel()[: inputs * width]]


def search_by_brute_force(
    x: Sequence[np.float32], classes: Sequence[int], coded: int, price: np.ndarray, states: int
) -> float:
    """Least cost of one lane over all 2^T sequences of parities."""
    costs = [
        [float(cost) for cost, _ in branch_choices(v, int(c), coded, price)] for v, c in zip(x, classes, strict=True)
    ]

    def least(t: int, s: int) -> float:
        if t == len(costs):
            return 0.0
        return min(costs[t][(s & 1) + 2 * z] + least(t + 1, next_state(states, s, z)) for z in (0, 1))

    return least(0, 0)


def path_cost(
    k: Sequence[int], x: Sequence[np.float32], classes: Sequence[int], coded: int, price: np.ndarray, states: int
) -> float:
    """Cost of given symbols on the path from state 0."""
    reach = price.shape[1] // 2
    total, s = 0.0, 0
    for symbol, v, c in zip(k, x, classes, strict=True):
        m = raw_bits(int(c), coded)
        table = price[c - 8 * m]
        at = min(max(symbol >> m, -reach), reach) + reach
        error = float(v) - (2 * symbol + (s & 1)) - (float(table[at, s & 1, 0]) if m == 0 else 0.0)
        total += error**2 + float(table[at, 1 if m else s & 1, 1])
        s = next_state(states, s, symbol & 1)
    return total


# rANS


class RansEncoder:
    """Interleaved rANS: states in [2^16, 2^32), words of 16 bits, last symbol first."""

    def __init__(self) -> None:
        self.lanes = [1 << 16] * LANES
        self.words: list[int] = []

    def push(self, lane: int, start: int, freq: int, bits: int = 12) -> None:
        """One symbol that owns [start, start + freq) of 2^bits."""
        x = self.lanes[lane]
        if x >= freq << (32 - bits):
            self.words.append(x & 0xFFFF)
            x >>= 16
        self.lanes[lane] = (x // freq << bits) + x % freq + start
        assert 1 << 16 <= self.lanes[lane] < 1 << 32

    def stream(self) -> list[int]:
        """The states of the lanes, low word first, and the words in the order they are read."""
        return [word for x in self.lanes for word in (x & 0xFFFF, x >> 16)] + self.words[::-1]


class RansDecoder:
    """The inverse; beyond the end it reads zeros, and `finished` says whether it ended where it should."""

    def __init__(self, words: Sequence[int]) -> None:
        self.lanes = [words[2 * i] | words[2 * i + 1] << 16 for i in range(LANES)]
        self.words = list(words[2 * LANES :])
        self.read = 0

    def pop(self, lane: int, bits: int, owner: Callable[[int], tuple[int, int, int]]) -> int:
        """One symbol; `owner` maps a slot to (symbol, start, frequency)."""
        x = self.lanes[lane]
        slot = x & ((1 << bits) - 1)
        symbol, start, freq = owner(slot)
        x = freq * (x >> bits) + slot - start
        if x < 1 << 16:
            x = x << 16 | (self.words[self.read] if self.read < len(self.words) else 0)
            self.read += 1
        self.lanes[lane] = x
        return symbol

    def pop_raw(self, lane: int, bits: int) -> int:
        """`bits` bits as they are."""
        return self.pop(lane, bits, lambda slot: (slot, slot, 1))

    def finished(self) -> bool:
        """Whether all words are read and all lanes are as the encoder began."""
        return self.read == len(self.words) and self.lanes == [1 << 16] * LANES


def encode_tile(
    k: Sequence[int], classes: Sequence[int], unions: Sequence[int], coded: int,
    start: np.ndarray, freq: np.ndarray, reach: np.ndarray,
) -> list[int]:  # fmt: skip
    """Words of one tile; start, freq [2 C, 256] per context 2 x class + union, reach [2 C]."""
    coder = RansEncoder()
    for t in reversed(range(len(k))):
        lane, symbol = t % LANES, int(k[t])
        m = raw_bits(int(classes[t]), coded)
        context = 2 * (int(classes[t]) - 8 * m) + (1 if m else int(unions[t]))
        if m:
            coder.push(lane, symbol & ((1 << m) - 1), 1, m)
            symbol >>= m
        union = context & 1
        magnitude = symbol if symbol >= 0 else -symbol - union
        if magnitude > reach[context]:
            beyond = magnitude - int(reach[context])
            bits = beyond.bit_length() - 1
            low = beyond - (1 << bits)
            if bits > 12:
                coder.push(lane, low & 4095, 1, 12)
                coder.push(lane, low >> 12, 1, bits - 12)
            elif bits:
                coder.push(lane, low, 1, bits)
            coder.push(lane, 2 * bits + (symbol < 0), 1, 6)
            byte = 0
        else:
            byte = symbol + 128
        coder.push(lane, int(start[context, byte]), int(freq[context, byte]))
    return coder.stream()


def decode_tile(
    words: Sequence[int], classes: Sequence[int], coded: int, states: int,
    start: np.ndarray, freq: np.ndarray, points: np.ndarray, reach: np.ndarray,
) -> tuple[list[np.float32], bool]:  # fmt: skip
    """Reconstruction points of one tile, and whether the stream ended where it should."""
    coder = RansDecoder(words)
    state = [0] * LANES
    out: list[np.float32] = []
    for t, c in enumerate(classes):
        lane = t % LANES
        s = state[lane]
        m = raw_bits(int(c), coded)
        context = 2 * (int(c) - 8 * m) + (1 if m else s & 1)

        def owner(slot: int, context: int = context) -> tuple[int, int, int]:
            byte = int(np.flatnonzero((start[context] <= slot) & (slot < start[context] + freq[context]))[0])
            return byte, int(start[context, byte]), int(freq[context, byte])

        byte = coder.pop(lane, 12, owner)
        k = byte - 128
        if byte == 0:
            head = coder.pop_raw(lane, 6)
            bits, low = head >> 1, 0
            if bits > 12:
                low = coder.pop_raw(lane, bits - 12) << 12 | coder.pop_raw(lane, 12)
            elif bits:
                low = coder.pop_raw(lane, bits)
            magnitude = int(reach[context]) + (1 << bits) + low
            k = -magnitude - (context & 1) if head & 1 else magnitude
        if m:
            k = k << m | coder.pop_raw(lane, m)
        out.append(points[context, byte] if byte and not m else _F(2 * k + (s & 1)))
        state[lane] = next_state(states, s, k & 1)
    return out, coder.finished()


def four_symbols(
    lanes: Sequence[tuple[int, int]], words: Sequence[int], at: int, classes: Sequence[int], coded: int, states: int,
    slots: np.ndarray, points: np.ndarray,
) -> tuple[list[tuple[int, int]], int, list[np.float32], bool]:  # fmt: skip
    """The next symbol of some lanes (state, trellis state): lanes, place of the next word, points, and whether one of
    them is an escape; all but that is then of no account."""
    after, out, escaped = [], [], False
    for (x, s), c in zip(lanes, classes, strict=True):
        m = raw_bits(c, coded)
        context = 2 * (c - 8 * m) + (1 if m else s & 1)
        entry = int(slots[context << 12 | x & 4095])
        symbol = entry >> 24
        escaped |= symbol == 0
        left = (entry & 4095) * (x >> 12) + (entry >> 12 & 4095)
        if left < 1 << 16:
            left, at = left << 16 | words[at], at + 1
        k, point = symbol - 128, points[context << 8 | symbol]
        if m:
            k = k << m | left & ((1 << m) - 1)
            left, point = left >> m, _F(2 * k + (s & 1))
            if left < 1 << 16:
                left, at = left << 16 | words[at], at + 1
        out.append(point)
        after.append((left, next_state(states, s, k & 1)))
    return after, at, out, escaped


def encode_bytes(data: Sequence[int], freq: Sequence[int]) -> list[int]:
    """Words of order-0 coded bytes."""
    coder = RansEncoder()
    start = np.cumsum(freq) - freq
    for t in reversed(range(len(data))):
        coder.push(t % LANES, int(start[data[t]]), int(freq[data[t]]))
    return coder.stream()


def decode_bytes(words: Sequence[int], freq: Sequence[int], n: int) -> tuple[list[int], bool]:
    """n bytes, and whether the stream ended where it should."""
    coder = RansDecoder(words)
    owners = [
        (b, first, int(f))
        for b, (first, f) in enumerate(zip(np.cumsum(freq) - freq, freq, strict=True))
        for _ in range(f)
    ]
    return [coder.pop(t % LANES, 12, lambda slot: owners[slot]) for t in range(n)], coder.finished()


def normalise(counts: Sequence[int], total: int) -> list[int]:
    """Frequencies that sum to `total`, at least 1 where there is a count."""
    n = sum(counts)
    freq = [max(count * total // n, 1) if count else 0 for count in counts]
    while sum(freq) != total:
        largest = freq.index(max(freq))
        missing = total - sum(freq)
        freq[largest] += missing if missing > 0 else -min(-missing, max(freq[largest] // 4, 1))
    return freq


# The adaptive binary range coder of small integers

_UNARY = 14


def _bits_of(value: int, before: int) -> Iterator[tuple[int, int]]:
    """(context, bit) of one integer; context -1 is an equiprobable bit."""
    yield before, int(value != 0)
    if not value:
        return
    yield 2 + before, int(value < 0)
    rest = abs(value) - 1
    for place in range(min(rest, _UNARY)):
        yield 4 + place, 1
    if rest < _UNARY:
        yield 4 + rest, 0
        return
    rest -= _UNARY - 1
    bits = rest.bit_length() - 1
    yield from ((-1, 1) for _ in range(bits))
    yield -1, 0
    yield from ((-1, rest >> b & 1) for b in reversed(range(bits)))


def encode_integers(values: Sequence[int]) -> bytes:
    """Small integers, each in contexts that depend on whether the one before was 0."""
    pairs = itertools.pairwise((0, *map(int, values)))
    return _range_coded(bit for before, value in pairs for bit in _bits_of(value, int(before != 0)))


def _range_coded(bits: Iterable[tuple[int, int]]) -> bytes:
    """The range coder on one big integer: no carries to resolve."""
    low, width, shifts = 0, 0xFFFFFFFF, 0
    probability: defaultdict[int, int] = defaultdict(lambda: 1024)
    for context, bit in bits:
        if context < 0:
            bound = width >> 1
            low, width = low + (bound if bit else 0), bound
        else:
            bound = (width >> 11) * probability[context]
            if bit:
                low, width = low + bound, width - bound
                probability[context] -= probability[context] >> 4
            else:
                width = bound
                probability[context] += (2048 - probability[context]) >> 4
        while width < 1 << 24:
            low, width, shifts = low << 8, width << 8, shifts + 1
    return low.to_bytes(shifts + 4, "big").rstrip(b"\0")


# Sparse blocks: (weights of the basis functions, {place in the scan: value}) each

Block = tuple[list[int], dict[int, int]]
_COUNT, _GAP, _VALUE = 8, 9, 10


def _bits_of_number(value: int, context_set: int) -> Iterator[tuple[int, int]]:
    """(context, bit) of an integer >= 0: its length in unary, then its bits below the leading one."""
    base, digits = 128 * context_set, f"{value + 1:b}"[1:]
    yield from ((base + place, 1) for place in range(len(digits)))
    yield base + len(digits), 0
    tree = base + 32 + 3 * len(digits)
    contexts = [tree, tree + 1 + int(digits[:1] or 0)]
    for place, digit in enumerate(digits):
        yield (contexts[place] if place < 2 else -1), int(digit)


def encode_blocks(blocks: Sequence[Block]) -> bytes:
    """The blocks of one tile."""

    def bits() -> Iterator[tuple[int, int]]:
        for weights, coefficients in blocks:
            for j, weight in enumerate(weights):
                yield from _bits_of_number(abs(weight), j)
                if weight:
                    yield -1, int(weight < 0)
            yield from _bits_of_number(len(coefficients), _COUNT)
            before = -1
            for place, value in sorted(coefficients.items()):
                yield from _bits_of_number(place - before - 1, _GAP)
                yield from _bits_of_number(abs(value) - 1, _VALUE)
                yield -1, int(value < 0)
                before = place

    return _range_coded(bits())


def decode_blocks(data: bytes, areas: Sequence[int], functions: int) -> list[Block] | None:
    """The way back, by the decoder that docs/FORMAT.md describes; None if the data is damaged."""
    coder = RangeDecoder(data, 128 * 11)
    blocks: list[Block] = []
    try:
        for area in areas:
            weights, coefficients, place = [], {}, -1
            for j in range(functions):
                weight = read_number(coder, j)
                weights.append(-weight if weight and coder.plain() else weight)
            count = read_number(coder, _COUNT)
            if count > area:
                return None
            for _ in range(count):
                place += 1 + read_number(coder, _GAP)
                value = read_number(coder, _VALUE) + 1
                coefficients[place] = -value if coder.plain() else value
                if place >= area:
                    return None
            blocks.append((weights, coefficients))
        coder.finish()
    except Refused:
        return None
    return blocks


# The scale field


def add_up(values: Sequence[int]) -> list[int] | None:
    """Running sums; None if one does not fit 32 bits."""
    totals = list(itertools.accumulate(values))
    return totals if all(-(1 << 31) <= total < 1 << 31 for total in totals) else None


def axis_costs(
    logs: np.ndarray, middle: float, per_octave: int, highest: int, origins: int, others: int, units: int
) -> list[float]:
    """Entropy, learning and the loss of Kullback and Leibler, unit by unit and zero by zero; to rounding."""
    costs = []
    for shift in range(units):
        unit = 2**shift / per_octave
        for origin in range(origins):
            zero = middle + origin * unit / origins
            reach = highest // 2**shift
            indices = [min(max(math.floor((x - zero) / unit + 0.5), -reach), reach) for x in logs.tolist()]
            counts = Counter(indices)
            entropy = -sum(count * math.log2(count / len(indices)) for count in counts.values())
            wrong = [index * unit + zero - x for index, x in zip(indices, logs.tolist(), strict=True)]
            lost = sum((math.exp(-2 * math.log(2) * w) - 1) / (2 * math.log(2)) + w for w in wrong)
            costs.append(entropy + 10 * (len(counts) - 1) + 16 + others * lost)
    return costs


def sweep(w: np.ndarray, column_weight: np.ndarray, column_sum: np.ndarray) -> tuple[list[float], list[float]]:
    """Row powers, sum_j w_ij^2 / c_j^2, and the column sums with sum_i w_ij^2 n / row_power_i added."""
    rows, columns = [], [float(value) for value in column_sum]
    for row in w.astype(np.float64).tolist():
        partial = [0.0] * 8
        for j, v in enumerate(row):
            partial[j % 8] += v * v * float(column_weight[j])
        a, b, c, d, e, f, g, h = partial
        total = ((a + b) + (c + d)) + ((e + f) + (g + h))
        rows.append(total)
        if total > 0:
            weight = len(row) / total
            columns = [old + v * v * weight for old, v in zip(columns, row, strict=True)]
    return rows, columns


def unpack_exponents(stored: Sequence[int], marked: bool, shift: int, highest: int, zero: int) -> list[int] | None:
    """Exponents of an axis; None if one is out of range."""
    values = stored[1:] if marked else stored
    dead = [marked and value == stored[0] for value in values]
    if any(abs(value) > highest for value, is_dead in zip(values, dead, strict=True) if not is_dead):
        return None
    return [zero if is_dead else value << shift for value, is_dead in zip(values, dead, strict=True)]


def shape_exponents(
    exponents: Sequence[int], shaping: int, importance: Sequence[int], zero: int
) -> tuple[list[int], list[int]]:
    """Step exponents and class exponents of an axis."""
    added = importance or [0] * len(exponents)
    steps = [0 if e == zero else (shaping * e + 8) // 16 + a for e, a in zip(exponents, added, strict=True)]
    return steps, [zero if e == zero else e - step for e, step in zip(exponents, steps, strict=True)]


def scales_of(steps: Sequence[int], classes: Sequence[int], zero: int, eighths: np.ndarray) -> np.ndarray:
    """2^(A / 8) in float32, by the tables of 2^(i / 8) and an exact shift, 0 where nothing lives."""
    with np.errstate(over="ignore", under="ignore"):
        return np.array(
            [0 if c == zero else np.ldexp(eighths[a % 8], a // 8) for a, c in zip(steps, classes, strict=True)], _F
        )


def multiply_line(points: np.ndarray, outer: np.float32, inner: np.ndarray) -> list[np.float32]:
    """Points times their steps, the step rounded first."""
    return [point * (outer * scale) for point, scale in zip(points, inner, strict=True)]


def classify(outer: Sequence[int], inner: Sequence[int], base: int, highest: int) -> list[list[int]]:
    """Class of each element: 0 where the row or column is zero, else kept within 1 and `highest`."""
    return [
        [min(max(base + a + b, 1), highest) if base + a + b > -(1 << 20) else 0 for b in map(int, inner)]
        for a in map(int, outer)
    ]


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of squared differences: eight running sums, added up pairwise."""
    partial = [0.0] * 8
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        partial[i % 8] += (x - y) * (x - y)
    s, t, u, v, w, x, y, z = partial
    return ((s + t) + (u + v)) + ((w + x) + (y + z))


# Products in a fixed order


def add_product(a: np.ndarray, b: np.ndarray, sign: np.float32, out: np.ndarray) -> np.ndarray:
    """out + sign * (a @ b), one rounding after the other, the inner index the outermost loop."""
    result = out.copy()
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            factor = sign * a[i, k]
            for j in range(b.shape[1]):
                result[i, j] = result[i, j] + factor * b[k, j]
    return result


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b in the same order."""
    return add_product(a, b, _F(1), np.zeros((a.shape[0], b.shape[1]), np.float32))


def top_coefficients_energy(w: np.ndarray, matrix_of: Callable[[int], np.ndarray], block: int, size: int) -> float:
    """Share of the energy that the largest coefficients of a blockwise transform keep in `size` bytes, at best.

    An oracle, kinder than any code: the places cost their entropy, log2 C(n, k) bits, a value costs 4 bits and is kept
    exactly, and there is no header.
    """
    coefficients = []
    for top in range(0, w.shape[0], block):
        for left in range(0, w.shape[1], block):
            part = w[top : top + block, left : left + block].astype(np.float64)
            rows, columns = (matrix_of(n).astype(np.float64) for n in part.shape)
            coefficients.append((rows @ part @ columns.T).ravel())
    squares = np.sort(np.concatenate(coefficients) ** 2)[::-1]
    n = squares.size
    count = 0
    while count < n and math.lgamma(n + 1) - math.lgamma(count + 2) - math.lgamma(n - count) <= math.log(2) * (
        8 * size - 4 * (count + 1)
    ):
        count += 1
    return float(squares[:count].sum() / squares.sum())


def second_moments(x: np.ndarray) -> np.ndarray:
    """The mean of x x^T over the rows x of a matrix, one vector at a time, float64[n, n]."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for row in x.astype(np.float64):
        total += np.outer(row, row)
    return total / len(x)


def blockwise(x: np.ndarray, whole: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The block-diagonal matrix of the functions that `analyse_blocks` multiplies a vector of x's size with."""
    blocks = (x.shape[-1] - rest.shape[1]) // whole.shape[1] if whole.shape[1] else 0
    matrix = np.zeros((blocks * whole.shape[0] + rest.shape[0], x.shape[-1]))
    for i in range(blocks):
        height, width = whole.shape
        matrix[i * height : (i + 1) * height, i * width : (i + 1) * width] = whole
    matrix[blocks * whole.shape[0] :, blocks * whole.shape[1] :] = rest
    return matrix


def sparse(starts: np.ndarray, places: np.ndarray, values: np.ndarray, columns: int) -> np.ndarray:
    """A matrix from its compressed rows."""
    matrix = np.zeros((len(starts) - 1, columns))
    for row in range(len(starts) - 1):
        for entry in range(starts[row], starts[row + 1]):
            matrix[row, places[entry]] += values[entry]
    return matrix


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float) -> np.ndarray:
    """Layer normalisation, in extended precision."""
    wide = x.astype(np.longdouble)
    centred = wide - wide.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + epsilon) * gamma + beta


def gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x), Phi the Gaussian distribution function."""
    wide = [math.erf(float(a * _F(math.sqrt(0.5)))) for a in x]
    return np.array([(_F(a) + _F(1)) * (_F(0.5) * b) for a, b in zip(wide, x, strict=True)])


def attend(query: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """softmax(scale q K^T) V of one head: query[size], keys and values[seen, size]."""
    scores = np.array([scale * sum(float(a) * float(b) for a, b in zip(query, key, strict=True)) for key in keys])
    weights = np.exp(scores - scores.max())
    return sum(weight / weights.sum() * value.astype(float) for weight, value in zip(weights, values, strict=True))


def table_at(values: Sequence[float], x: float, below: float, above: float) -> float:
    """A table's figure between its entries and beyond its ends."""
    last = len(values) - 1
    inside = float(np.interp(x, np.arange(last + 1), values))
    return inside + below * min(x, 0.0) + above * max(x - last, 0.0)
