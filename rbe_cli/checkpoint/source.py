"""What a user means by SOURCE: a local path, a model that ships with rbe, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from rbe_cli import models
from rbe_cli.checkpoint.hub import is_cached, is_offline, looks_like_repo_id, open_repository
from rbe_cli.checkpoint.reader import Checkpoint, open_checkpoint
from rbe_cli.errors import RBEError


def open_source(source: str, revision: str | None = None, progress: bool = True) -> Checkpoint:
    """Open a checkpoint. A name that is a local path wins, then a shipped model, then the hub.

    `progress` is whether fetching may draw bars on stderr.
    """
    path = Path(source)
    if path.exists():
        return open_checkpoint(path)
    if source in models.NAMES:
        checkpoint = open_checkpoint(models.path(source))
        checkpoint.name = source
        return checkpoint
    if looks_like_repo_id(source):
        return open_repository(source, revision, progress)
    raise RBEError(f"{source}: no such file or folder")


def is_fetched(source: str, revision: str | None = None) -> bool:
    """Whether opening a source means to fetch it first."""
    return is_remote(source, revision) and not is_offline()


def is_remote(source: str, revision: str | None = None) -> bool:
    """Whether a source is a repository of which the cache has no weights, so that opening it would fetch them."""
    if Path(source).exists() or source in models.NAMES or not looks_like_repo_id(source):
        return False
    return not is_cached(source, revision)
