"""How long a command takes to start, with Python's collector of cycles away meanwhile and not.

    python -m tests.benchmarks.start_up              # seconds of the whole process, the two side by side

The command is a forecast of mini-gpt2, which loads every kernel and does little.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median, quantiles

from rbe_cli.codec.warm_up import compile_all

_COLLECTING = """
import contextlib
import rbe_cli.imports
rbe_cli.imports.uncollected = contextlib.nullcontext
"""
_RUN = """
import sys
sys.argv = ["rbe", "compress", "mini-gpt2", "--dry-run", "--json", "--quiet"]
from rbe_cli.__main__ import main
main()
"""
WAYS = {"cycles are looked for": _COLLECTING + _RUN, "not while modules are imported": _RUN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    compile_all()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(turns):
        for way, code in WAYS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
            seconds[way].append(time.perf_counter() - started)
    for way, found in seconds.items():
        low, _, high = quantiles(found, n=4)
        print(f"{way}: {median(found):.2f} s, half of the runs from {low:.2f} to {high:.2f}")
    first, second = (median(found) for found in seconds.values())
    print(f"ratio {second / first:.2f}")


if __name__ == "__main__":
    main()
