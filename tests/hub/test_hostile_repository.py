"""Repositories whose listings and indices name what they must not: fetched, and found in the cache offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.endpoint import COMMIT, Endpoint, Repository, run_rbe, serve
from tests.synthetic import write_tiny_model

#: What an index says a tensor's shard is called.
SHARDS = {
    "climbs": "../../../../outside.safetensors",
    "climbs_in_the_middle": "a/../../../outside.safetensors",
    "absolute": "/etc/passwd",
    "nul": "model\0.safetensors",
    "long": "m" * 5000 + ".safetensors",
    "line_end": "model\n.safetensors",
    "surrogate": "model\udcff.safetensors",
    "backslashes": "..\\..\\outside.safetensors",
    "empty": "",
    "dots": "..",
    "number": 5,
    "pattern": "*",
}
#: Files beside sound ones.
FILES = {
    "climbs": "../../../../outside.json",
    "climbs_in_the_middle": "a/../../../outside.json",
    "absolute": "/outside.json",
    "line_end": "outside\n.json",
    "escape": "\x1b[31moutside.json",
    "long": "m" * 5000 + ".json",
    "backslashes": "..\\..\\outside.json",
    "pattern": "[!a]*.json",
    "weights_that_climb": "../outside.safetensors",
    "weights_of_a_pattern": "[!a]*.safetensors",
}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")
    sound = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    weights = sound.pop("model.safetensors")
    repositories = {f"files/{name}": Repository({COMMIT: sound | {"model.safetensors": weights, file: b"{}"}})
                    for name, file in FILES.items()}  # fmt: skip
    for name, shard in SHARDS.items():
        index = json.dumps({"weight_map": {"wte.weight": shard}}).encode()
        files = {"model-00001-of-00001.safetensors": weights, "model.safetensors.index.json": index}
        repositories[f"shards/{name}"] = Repository({COMMIT: sound | files})
    with serve(repositories) as running:
        yield running


@pytest.mark.parametrize("repository", [f"shards/{name}" for name in SHARDS] + [f"files/{name}" for name in FILES])
def test_fetched_and_offline(repository: str, endpoint: Endpoint, tmp_path: Path) -> None:
    home, work = tmp_path / "a" / "b" / "home", tmp_path / "work"
    for offline, command in (("0", "inspect"), ("0", "compress"), ("1", "inspect"), ("1", "compress")):
        arguments = ["-o", "out", "--force"] if command == "compress" else []
        done = run_rbe(endpoint, work, home, command, repository, "-q", *arguments, HF_HUB_OFFLINE=offline)
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stderr
        if done.returncode:
            assert done.returncode in (1, 4)
            assert done.stderr.startswith("rbe: ")
            assert done.stderr.count("\n") == 1, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a", "work"}
    assert {path.name for path in work.iterdir()} <= {"out"}
    assert {path.name for path in (tmp_path / "a").rglob("*") if path.parent.name in ("a", "b")} == {"b", "home"}
