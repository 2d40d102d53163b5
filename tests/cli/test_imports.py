"""The collector of cycles is away while modules are imported, and only then."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rbe_cli.cli import console
from rbe_cli.cli.options import Status
from rbe_cli.codec import warm_up
from rbe_cli.imports import uncollected
from tests.command_line import ENVIRONMENT

_AT_WORK = """
import gc, sys
import rbe_cli.cli.compress as compress
states = []
def watched(name):
    function = getattr(compress, name)
    def call(*args, **extra):
        states.append((name, gc.isenabled()))
        return function(*args, **extra)
    setattr(compress, name, call)
for name in ("open_source", "load_kernels", "_dry_run"):
    watched(name)
sys.argv = ["rbe", "compress", "mini-gpt2", "--dry-run", "--quiet", "--json"]
from rbe_cli.__main__ import main
try:
    main()
finally:
    print("STATES", states, gc.get_freeze_count() > 10_000, file=sys.stderr)
"""


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_the_collector_is_as_it_was_afterwards() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.usefixtures("thawed")
def test_an_error_brings_the_collector_back() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.usefixtures("thawed")
@pytest.mark.parametrize(("patience", "collected"), [(0.05, True), (60.0, False)])
def test_what_compiling_leaves_behind_is_collected(
    patience: float, collected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the first run on a machine that takes so long."""
    states = []

    def compile_all() -> None:
        time.sleep(0.2)
        states.append(gc.isenabled())

    monkeypatch.setattr(console, "_PATIENCE", patience)
    monkeypatch.setattr(warm_up, "compile_all", compile_all)
    console.load_kernels(Status(quiet=True))
    assert states == [collected]
    assert gc.isenabled()


def test_cycles_are_collected_while_a_command_works() -> None:
    done = subprocess.run([sys.executable, "-c", _AT_WORK], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    states = "[('open_source', True), ('load_kernels', True), ('_dry_run', True)]"
    assert done.stderr.splitlines()[-1] == f"STATES {states} True"
