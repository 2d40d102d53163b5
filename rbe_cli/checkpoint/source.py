"""What a user means by SOURCE: a local path, a model that ships with rbe, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from rbe_cli import models
from rbe_cli.checkpoint.hub import is_cached, is_offline, looks_like_repo_id, open_repository
from rbe_cli.checkpoint.reader import Checkpoint, open_checkpoint
from rbe_cli.errors import RBEError, UsageError


def open_source(
    source: str, revision: str | None = None, *, progress: bool = False, cached_only: bool = False
) -> Checkpoint:
    """Open a checkpoint. A name that is a local path wins, then a shipped model, then the hub.

    `progress` is whether fetching may draw bars on stderr; with `cached_only` nothing is fetched.
    """
    if source and looks_like_repo_id(source) and not _is_here(source):
        return open_repository(source, revision, progress=progress, cached_only=cached_only)
    if not source or not _is_here(source):
        raise RBEError(_no_source(source))
    if revision is not None:
        raise UsageError(f"{source}: is not of the hub, so it has no --revision {revision}")
    if Path(source).exists():
        return open_checkpoint(Path(source))
    checkpoint = open_checkpoint(models.path(source))
    checkpoint.name = source
    return checkpoint


def is_fetched(source: str, revision: str | None = None) -> bool:
    """Whether opening a source means to fetch it: it is a repository, the cache lacks weights, the hub may be asked."""
    if _is_here(source) or not looks_like_repo_id(source) or is_offline():
        return False
    return not is_cached(source, revision)


def _is_here(source: str) -> bool:
    """Whether it is a path or a model that ships with rbe."""
    return Path(source).exists() or source in models.NAMES


def _no_source(source: str) -> str:
    """Why a source cannot be opened that is neither here nor the name of a repository."""
    if not source:
        return "SOURCE is empty; give a file, a folder or a Hugging Face repo id"
    repository, at, revision = source.partition("@")
    advice = ""
    if at and looks_like_repo_id(repository):
        advice = f"; for a revision of a repository, write {repository} --revision {revision}"
    elif "://" in source:
        advice = "; of a page of the hub, give the repo id alone, like org/model"
    return f"{source}: no such file or folder{advice}"
