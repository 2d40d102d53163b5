"""What SOURCE means: a local path, a shipped model, a repository."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rbe_cli import models
from rbe_cli.checkpoint.hub import looks_like_repo_id
from rbe_cli.checkpoint.source import open_source
from rbe_cli.errors import RBEError, UsageError


def test_local_path_wins(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini-gpt2").symlink_to(tiny_source)
    assert {shard.path for shard in open_source("mini-gpt2").shards} == {Path("mini-gpt2/model.safetensors")}


def test_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = open_source("mini-gpt2")
    assert checkpoint.name == "mini-gpt2"
    assert any(info.name.endswith("wte.weight") for _, info in checkpoint.tensors)
    assert "config.json" in [relative for _, relative in checkpoint.carried]


def test_no_other_shipped_model() -> None:
    with pytest.raises(ValueError, match="mini-gpt2"):
        models.path("maxi-gpt2")


@pytest.mark.parametrize(
    "source",
    ["./gone", "../gone", "/gone/model", "gone.safetensors", "gone.rbe", "gone/h.0.rbe", "a/b/c", "a b", "org/name..",
     "a--b", "-a", "x.git"],
)  # fmt: skip
def test_what_can_only_be_a_path(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RBEError, match="no such file or folder"):
        open_source(source)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("", "SOURCE is empty"),
        ("minigpt2", "; did you mean mini-gpt2"),
        ("org/model@v1", "write org/model --revision v1"),
        ("https://example.org/org/model", "give the repo id alone"),
    ],
)
def test_what_was_probably_meant(source: str, advice: str) -> None:
    with pytest.raises(RBEError, match=advice):
        open_source(source)


def test_a_revision_of_what_has_none(tiny_source: Path) -> None:
    for source in (str(tiny_source), "mini-gpt2"):
        with pytest.raises(UsageError, match="no --revision v1"):
            open_source(source, "v1")


def test_what_is_compressed_already(compressed: Path) -> None:
    for path in (compressed, next(compressed.glob("*.rbe"))):
        with pytest.raises(RBEError, match="is compressed already"):
            open_source(str(path))


@pytest.mark.parametrize(
    ("source", "repository"),
    [("gpt2", True), ("org/model-1.5_b", True), ("a/b/c", False), ("./a", False), ("x" * 97, False)],
)
def test_looks_like_repo_id(source: str, repository: bool) -> None:
    assert looks_like_repo_id(source) == repository


def test_repository_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is set for all tests; the message says so in one line."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RBEError, match="nobody/nothing: no such local path") as error:
        open_source("nobody/nothing")
    assert "offline" in str(error.value)
    assert "\n" not in str(error.value)


class _Hub:
    """Stands in for huggingface_hub.snapshot_download."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []

    def __call__(self, repo_id: str, revision: str | None = None, **_: object) -> str:
        self.asked.append((repo_id, revision))
        return str(self.folder)


def test_repository_from_the_cache(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "snapshots" / ("ab" * 20)
    snapshot.parent.mkdir()
    snapshot.symlink_to(tiny_source)
    hub = _Hub(snapshot)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    checkpoint = open_source("org/tiny", "main")
    assert hub.asked == [("org/tiny", "main")]
    assert (checkpoint.name, checkpoint.revision) == ("org/tiny", "ab" * 20)
    assert "huggingface_hub" in sys.modules


def test_repository_of_which_the_cache_has_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _Hub(tmp_path / "snapshot"))
    with pytest.raises(RBEError, match="not in the hub cache"):
        open_source("org/tiny")
