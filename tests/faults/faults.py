"""Faults: commands are killed, starved and disturbed at random moments, and what is left is looked at.

    python -m tests.faults.faults --times 15        (or `make faults`) prints the table of docs/robustness.md

After each, the output must be the old one, complete, the new one, complete, or absent; the command must have said what
happened, where it could; and the same command again must come to the bytes it would have come to undisturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from tests.command_line import ENVIRONMENT
from tests.synthetic import folder_bytes, scaled_normal

ABSENT, OLD, NEW = "absent", "old, complete", "new, complete"


class Scene:
    """A folder with a checkpoint of some seconds of work, another one, and what compressing and decoding them gives."""

    def __init__(self, root: Path, large: bool = False) -> None:
        self.root = root
        self.source, self.other = root / "source", root / "other"
        for folder, seed in ((self.source, 1), (self.other, 2)):
            folder.mkdir()
            size = (1536, 1024) if large and folder == self.source else (256, 128)
            for shard in range(2):
                tensors = {f"h.{shard}.{i}.weight": scaled_normal(size, 100 * seed + 10 * shard + i) for i in range(3)}
                save_file(tensors, folder / f"model-{shard}.safetensors")
            (folder / "config.json").write_text('{"model_type": "tiny"}')
        self.new, self.old = root / "new.rbe", root / "old.rbe"
        self.seconds = {"compress": self.time("compress", self.source, "-o", self.new)}
        self.time("compress", self.other, "-o", self.old)
        self.new_back, self.old_back = root / "new.back", root / "old.back"
        self.seconds["decode"] = self.time("decode", self.new, "-o", self.new_back)
        self.time("decode", self.old, "-o", self.old_back)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """A command, its messages in a pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "rbe_cli", *map(str, arguments)], env=ENVIRONMENT | {"TMPDIR": str(self.root)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def run(self, *arguments: object, **options: Any) -> tuple[int, str]:
        """A command to its end: exit code and messages."""
        process = self.start(*arguments, "-q", **options)
        _, messages = process.communicate(timeout=300)
        return process.returncode, messages

    def time(self, *arguments: object) -> float:
        """How long a command takes that succeeds: its processor time, whatever else the machine does."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, messages = self.run(*arguments)
        assert code == 0, messages
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def state(self, out: Path, old: Path, new: Path) -> str:
        """What is there."""
        if not out.exists():
            return ABSENT
        found = folder_bytes(out)
        for name, folder in ((OLD, old), (NEW, new)):
            if found == folder_bytes(folder):
                return name
        raise AssertionError(f"{out}: neither the old nor the new output, nor absent: {sorted(found)}")


def said(code: int, messages: str, *words: str) -> None:
    """The command failed with one line that has one of the words."""
    assert code == 1, (code, messages)
    lines = messages.splitlines()
    assert len(lines) == 1, messages
    assert lines[0].startswith("rbe: "), messages
    assert any(word in messages for word in words), messages


def wait_for(process: subprocess.Popen[str], phase: str) -> None:
    """Wait until a command tells that a phase begins."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(phase):
            return
    raise AssertionError(f"ended before {phase}")


@contextlib.contextmanager
def place(scene: Scene, old: Path | None) -> Iterator[Path]:
    """An output, with an old one in its place or without; nothing but it is left in its folder afterwards."""
    with tempfile.TemporaryDirectory(dir=scene.root) as folder:
        out = Path(folder) / "out"
        if old is not None:
            shutil.copytree(old, out)
        yield out
        left = [name for name in os.listdir(folder) if name != "out"]
        assert left == [], f"left behind: {left}"


# Kills


def _processor_time(pid: int) -> float:
    """Of a process that has not been waited for, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kill(process: subprocess.Popen[str], after: float) -> bool:
    """kill -9 after some seconds of its processor time; whether it came in time."""
    while process.poll() is None and _processor_time(process.pid) < after:
        time.sleep(0.002)
    early = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return early


def _kill_until_done(scene: Scene, rng: random.Random, times: int) -> str:
    with place(scene, None) as out:
        for _ in range(times):
            if not out.exists():
                process = scene.start("compress", scene.source, "-o", out, "--resume", "-q")
                _kill(process, rng.uniform(0.3, 1.0) * scene.seconds["compress"])
        outcome = scene.state(out, scene.old, scene.new)
        if outcome == ABSENT:
            code, messages = scene.run("compress", scene.source, "-o", out, "--resume")
            assert code == 0, messages
        assert scene.state(out, scene.old, scene.new) == NEW
    return outcome


def kill_compress(scene: Scene, rng: random.Random) -> str:
    """Without an output before; then --resume."""
    return _kill_until_done(scene, rng, 1)


def kill_compress_force(scene: Scene, rng: random.Random) -> str:
    """Over an older output; then --resume."""
    with place(scene, scene.old) as out:
        process = scene.start("compress", scene.source, "-o", out, "--force", "-q")
        _kill(process, rng.uniform(0.3, 1.0) * scene.seconds["compress"])
        outcome = scene.state(out, scene.old, scene.new)
        code, messages = scene.run("compress", scene.source, "-o", out, "--force", "--resume")
        assert code == 0, messages
        assert scene.state(out, scene.old, scene.new) == NEW
    return outcome


def kill_resume(scene: Scene, rng: random.Random) -> str:
    """Up to six times, each while it goes on from the kill before; then --resume."""
    return _kill_until_done(scene, rng, 6)


def kill_decode(scene: Scene, rng: random.Random) -> str:
    """Over an older output or without one; then again."""
    old = rng.choice([None, scene.old_back])
    with place(scene, old) as out:
        process = scene.start("decode", scene.new, "-o", out, "--force", "-q")
        _kill(process, rng.uniform(0.3, 1.0) * scene.seconds["decode"])
        outcome = scene.state(out, scene.old_back, scene.new_back)
        code, messages = scene.run("decode", scene.new, "-o", out, "--force")
        assert code == 0, messages
        assert scene.state(out, scene.old_back, scene.new_back) == NEW
    return outcome


def kill_sweep(scene: Scene, rng: random.Random) -> str:
    """With its results kept, and the table as CSV; then again."""
    arguments = ("sweep", scene.other, "--bits", "3,4,5", "--efforts", "0", "--sample", "0.5")
    with place(scene, None) as out:
        out.mkdir()
        kept, table = out / "results.jsonl", out / "table.csv"
        process = scene.start(*arguments, "--results", kept, "--csv", table, "-q")
        _kill(process, rng.uniform(0.3, 1.3) * scene.seconds["compress"])
        outcome = NEW if table.exists() else ABSENT
        before = kept.read_bytes() if kept.exists() else b""
        code, messages = scene.run(*arguments, "--results", kept, "--csv", table, "--force")
        assert code == 0, messages
        assert kept.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
        assert len(table.read_text().splitlines()) == 4
        assert sorted(os.listdir(out)) == ["results.jsonl", "table.csv"]
    for left in scene.root.glob("rbe-*"):
        shutil.rmtree(left)
    return outcome


# Disks


@contextlib.contextmanager
def mounted(scene: Scene, *options: str) -> Iterator[Path]:
    """A file system in memory. Raises PermissionError where mounting is not allowed."""
    folder = Path(tempfile.mkdtemp(dir=scene.root))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        folder.rmdir()
        raise PermissionError("cannot mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def full_disk(scene: Scene, rng: random.Random) -> str:
    """Anywhere between the first byte and the last, with an older output or without."""
    compress = rng.random() < 0.5
    old, new = (scene.old, scene.new) if compress else (scene.old_back, scene.new_back)
    given = old if rng.random() < 0.5 else None
    need = sum(len(data) for data in folder_bytes(new).values())
    have = sum(len(data) for data in folder_bytes(given).values()) if given else 0
    with mounted(scene, f"size={(have + int(rng.uniform(0.05, 0.7) * need)) // 1024 + 8 * 4}k") as disk:
        out = disk / "out"
        if given:
            shutil.copytree(given, out)
        what = ("compress", scene.source) if compress else ("decode", scene.new)
        code, messages = scene.run(*what, "-o", out, "--force")
        said(code, messages, "No space left on device")
        assert os.listdir(disk) == (["out"] if given else [])
        return scene.state(out, old, new)


def read_only_disk(scene: Scene, rng: random.Random) -> str:
    """A file system that may not be written to, with an older output."""
    compress = rng.random() < 0.5
    old, new = (scene.old, scene.new) if compress else (scene.old_back, scene.new_back)
    with mounted(scene, "size=8m") as disk:
        out = disk / "out"
        shutil.copytree(old, out)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        what = ("compress", scene.source) if compress else ("decode", scene.new)
        code, messages = scene.run(*what, "-o", out, "--force")
        said(code, messages, "Read-only file system")
        return scene.state(out, old, new)


def file_size_limit(scene: Scene, rng: random.Random) -> str:
    """Files may not grow beyond some kilobytes (ulimit -f)."""
    limit = rng.randrange(4096, 60_000)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with place(scene, scene.old_back) as out:
        code, messages = scene.run("decode", scene.new, "-o", out, "--force", preexec_fn=limited)
        said(code, messages, "File too large")
        return scene.state(out, scene.old_back, scene.new_back)


# Things that change while they are used


def output_vanishes(scene: Scene, rng: random.Random) -> str:
    """The folder the output is in is removed while it is written."""
    with tempfile.TemporaryDirectory(dir=scene.root) as folder:
        inner = Path(folder) / "inner"
        inner.mkdir()
        process = scene.start("compress", scene.source, "-o", inner / "out", "--effort", 9)
        wait_for(process, "encoding")
        time.sleep(rng.uniform(0, 0.3))
        shutil.rmtree(inner)
        _, messages = process.communicate(timeout=300)
        last = messages.splitlines()[-1]
        said(process.returncode, last, "No such file", "there is no folder", "vanished")
        outcome = scene.state(inner / "out", scene.old, scene.new)
        assert outcome == ABSENT
        return outcome


def _source_disturbed(scene: Scene, rng: random.Random, disturb: Callable[[Path], None], *words: str) -> str:
    with tempfile.TemporaryDirectory(dir=scene.root) as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        shutil.copytree(scene.source, source)
        process = scene.start("compress", source, "-o", out)
        wait_for(process, rng.choice(["analysing", "encoding"]))
        time.sleep(rng.uniform(0, 0.5) * scene.seconds["compress"])
        disturb(source / f"model-{rng.randrange(2)}.safetensors")
        _, messages = process.communicate(timeout=300)
        if process.returncode == 0:
            # It had read what it needed, or still had the file that was there.
            return scene.state(out, scene.old, scene.new)
        said(process.returncode, messages.splitlines()[-1], *words)
        assert sorted(os.listdir(folder)) == ["source"]
        return ABSENT


def source_cut_short(scene: Scene, rng: random.Random) -> str:
    """A shard is truncated while it is compressed."""
    return _source_disturbed(scene, rng, lambda path: os.truncate(path, 5000), "changed while")


def source_rewritten(scene: Scene, rng: random.Random) -> str:
    """A shard is written over in place while it is compressed."""
    other = (scene.other / "model-0.safetensors").read_bytes()
    return _source_disturbed(scene, rng, lambda path: path.write_bytes(other), "changed while")  # type: ignore[arg-type, return-value]


def source_replaced(scene: Scene, rng: random.Random) -> str:
    """A shard is saved anew, by renaming, while it is compressed."""

    def replace(path: Path) -> None:
        shutil.copy(scene.other / "model-0.safetensors", path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    return _source_disturbed(scene, rng, replace, "changed while")


def source_vanishes(scene: Scene, rng: random.Random) -> str:
    """The source's folder is removed while it is compressed."""
    return _source_disturbed(scene, rng, lambda path: shutil.rmtree(path.parent), "no such file", "No such file")


def two_at_once(scene: Scene, rng: random.Random) -> str:
    """Two processes compress into the same folder: one does, the other is told."""
    with place(scene, None) as out:
        first = scene.start("compress", scene.source, "-o", out, "-q")
        time.sleep(rng.uniform(0, 0.3))
        second = scene.start("compress", scene.source, "-o", out, "-q")
        ends = [(process.communicate(timeout=300)[1], process.returncode) for process in (first, second)]
        codes = sorted(code for _, code in ends)
        assert codes == [0, 1], ends
        message = next(text for text, code in ends if code)
        said(1, message, "another rbe is writing it", "already there")
        return scene.state(out, scene.old, scene.new)


Fault = Callable[[Scene, random.Random], str]
#: Fault -> how often for each time asked for, in tenths.
FAULTS: dict[Fault, int] = {
    kill_compress: 10, kill_compress_force: 10, kill_resume: 5, kill_decode: 10, kill_sweep: 5, full_disk: 10,
    read_only_disk: 4, file_size_limit: 4, output_vanishes: 4, source_cut_short: 8, source_rewritten: 4,
    source_replaced: 4, source_vanishes: 4, two_at_once: 6,
}  # fmt: skip
#: Those that need work that goes on for a while.
LONG = {output_vanishes, source_cut_short, source_rewritten, source_replaced, source_vanishes}


def inject(scene: Scene, fault: Fault, times: int, seed: int) -> Counter[str]:
    """A fault several times: outcomes and how often. Raises AssertionError for any other."""
    rng = random.Random(f"{fault.__name__} {seed}")
    return Counter(fault(scene, rng) for _ in range(times))


def main() -> None:
    """Inject all of them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=15, help="about how often each fault is injected")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[fault.__name__ for fault in FAULTS], action="append")
    arguments = parser.parse_args()
    print("| fault | times | the output afterwards |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as short, tempfile.TemporaryDirectory() as long:
        scenes = Scene(Path(short)), Scene(Path(long), large=True)
        for fault, tenths in FAULTS.items():
            if arguments.only and fault.__name__ not in arguments.only:
                continue
            times = max(1, arguments.times * tenths // 10)
            try:
                outcomes = inject(scenes[fault in LONG], fault, times, arguments.seed)
            except PermissionError as error:
                print(f"| {fault.__name__} | 0 | {error} |", flush=True)
                continue
            name = f"{fault.__name__.replace('_', ' ')}: {(fault.__doc__ or '').strip()}"
            shown = ", ".join(f"{count} x {outcome}" for outcome, count in sorted(outcomes.items()))
            print(f"| {name} | {times} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
