"""Make `rbe_cli/codec/residual/tables.txt`: the integer frequency tables that are part of the format.

    python tools/make_tables.py rbe_cli/codec/residual/tables.txt        (about 10 minutes on one core)

For every source shape and every class of sigma / step the tables are the fixed point of "encode a random source with
the rates these tables give, count the symbols": rate-distortion optimisation reshapes the symbols, so the integral of
the density over the cells would be wrong by 1 % at 2 bits and far more below. The file is an input of the format, not
a result of it: regenerate it only together with a new format version.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from rbe_cli.codec.residual import tables
from rbe_cli.codec.residual.trellis import trellis
from rbe_cli.kernels.trellis import RATE_REACH, search

STATES = tables.STATES
STEPS, LANES = 32768, 32
ROUNDS = 9
LAST_ROUNDS = 3
TOTAL = 1 << tables.FREQUENCY_BITS
MAX_REACH = 96
SHIFTS = 4


def source(exponent: float) -> np.ndarray:
    """Generalised Gaussian samples of unit variance, float64[STEPS, LANES]."""
    rng = np.random.default_rng(20261122)
    magnitude = rng.gamma(1 / exponent, size=(STEPS, LANES)) ** (1 / exponent)
    sign = rng.integers(0, 2, (STEPS, LANES)) * 2 - 1
    x: np.ndarray = magnitude * sign
    x /= np.sqrt(np.mean(x * x))
    return x


def magnitudes(k: np.ndarray, union: int) -> np.ndarray:
    """Fold the symbols by symmetry: about 0 in union 0, about -1/2 in union 1."""
    return np.abs(k) if union == 0 else np.where(k >= 0, k, -1 - k)


def integer_table(counts: np.ndarray, union: int) -> list[int]:
    """Frequencies that sum to TOTAL: escape, then one per magnitude (each used on both sides of the centre)."""
    sides = np.full(counts.size, 2.0)
    if union == 0:
        sides[0] = 1.0
    p = counts / counts.sum() / sides
    reach = 0
    for m in range(1, min(counts.size, MAX_REACH + 1)):
        if p[m] * TOTAL < 0.4:
            break
        reach = m
    reach = max(reach, 1)
    body = p[: reach + 1]
    width = sides[: reach + 1]
    escape = max(1, round(TOTAL * float((p * sides)[reach + 1 :].sum())))
    freq = np.maximum(1, np.floor(body * TOTAL).astype(int))
    # Spend or take back what rounding left, each time where it matters most per slot.
    while True:
        left = TOTAL - escape - int((freq * width).sum())
        if left == 0:
            return [escape, *freq.tolist()]
        if left > 0:
            gain = body * np.log2((freq + 1) / freq)
            gain[width > left] = -1
            if gain.max() < 0:
                escape += left
                continue
            freq[int(gain.argmax())] += 1
        else:
            if union == 1 and left % 2:
                escape += 1
                continue
            loss = np.where(freq > 1, body * np.log2(freq / np.maximum(freq - 1, 0.5)), np.inf)
            if width[int(loss.argmin())] > -left:
                escape += 1
                continue
            freq[int(loss.argmin())] -= 1


def class_tables(x: np.ndarray, rate: np.ndarray, shift: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Iterate one class to its fixed point, starting from the rates and shifts of the class above."""
    t = trellis(STATES)
    xs = x.astype(np.float32)
    zeros = np.zeros(x.shape, np.uint8)
    scratch = np.empty((STEPS, STATES // 32, LANES), np.uint32), np.empty(x.shape, np.uint8)
    k, u = np.empty(x.shape, np.int32), np.empty(x.shape, np.uint8)
    ks = np.arange(-RATE_REACH, RATE_REACH + 1)
    result: dict[str, Any] = {}
    for turn in range(ROUNDS + LAST_ROUNDS):
        search(xs, zeros, 0, tables.price_of(rate[None], shift[None]), t.butterflies, t.back, *scratch, k, u)
        n = 2 * k + u
        clipped = np.clip(k, -RATE_REACH, RATE_REACH)
        shifts = []
        for j in range(1, SHIFTS + 1):
            at = np.abs(n) == j
            mean = float((np.sign(n[at]) * x[at]).mean() - j) if at.sum() > 400 else 0.0
            shifts.append(round(mean * tables.SHIFT_UNIT))
        freq = []
        for union in (0, 1):
            m = magnitudes(clipped[u == union], union)
            counts = np.bincount(m, minlength=RATE_REACH + 1).astype(float) + 1e-9
            freq.append(integer_table(counts, union))
        last = turn >= ROUNDS
        for union in (0, 1):
            if last:
                rate[union] = tables.symbol_bits(freq[union], union)
            else:
                m = magnitudes(clipped[u == union], union)
                counts = np.bincount(m, minlength=RATE_REACH + 2).astype(float)
                sides = np.full(counts.size, 2.0)
                sides[0] = 1.0 if union == 0 else 2.0
                p = (counts + 0.02) / (counts.sum() + 0.02 * counts.size) / sides
                rate[union] = -np.log2(p[magnitudes(ks, union)])
            n_of = 2 * ks + union
            shift[union] = 0
            for j in range(1, SHIFTS + 1):
                shift[union][np.abs(n_of) == j] = np.sign(n_of[np.abs(n_of) == j]) * shifts[j - 1] / tables.SHIFT_UNIT
        bits = sum(float(tables.symbol_bits(freq[v], v)[clipped[u == v] + RATE_REACH].sum()) for v in (0, 1))
        recon = n + np.where(
            (np.abs(n) >= 1) & (np.abs(n) <= SHIFTS),
            np.sign(n) * np.array([0, *shifts])[np.minimum(np.abs(n), SHIFTS)] / tables.SHIFT_UNIT,
            0.0,
        )
        distortion = float(np.mean((x - recon) ** 2))
        result = {"bits": bits / k.size, "distortion": distortion, "shift": shifts, "freq": freq}
    return result, rate, shift


def main() -> None:
    out = Path(sys.argv[1])
    lines = [
        "# rbe frequency tables, format 1. Made by tools/make_tables.py; part of the format: never edit.",
        "# C family class bits*1e5 distortion*1e6 shifts(|n|=1..4, 1/256 step)",
        "# F family class union escape f(0) f(1) ...",
    ]
    for family, exponent in enumerate(tables.FAMILY_EXPONENTS):
        x = source(exponent)
        rate = np.zeros((2, 2 * RATE_REACH + 1), np.float32)
        ks = np.arange(-RATE_REACH, RATE_REACH + 1)
        sigma = tables.sigma_over_step(tables.CLASSES)
        for union in (0, 1):
            rate[union] = ((2 * ks + union) / sigma) ** 2 / 2 / np.log(2) + 3
        shift = np.zeros((2, 2 * RATE_REACH + 1), np.float32)
        for c in range(tables.CLASSES, 0, -1):
            r, rate, shift = class_tables(x * tables.sigma_over_step(c), rate, shift)
            shannon = 6.0206 * r["bits"] + 10 * np.log10(r["distortion"] / tables.sigma_over_step(c) ** 2)
            print(family, c, f"{r['bits']:.4f} bits, gap {shannon:.3f} dB", flush=True)
            lines.append(
                f"C {family} {c} {round(r['bits'] * 1e5)} {round(r['distortion'] * 1e6)} "
                + " ".join(map(str, r["shift"]))
            )
            for union in (0, 1):
                lines.append(f"F {family} {c} {union} " + " ".join(map(str, r["freq"][union])))
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
