"""Checkpoints on the Hugging Face hub, through huggingface_hub: its cache, token, endpoint and offline mode."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rbe_cli.checkpoint.reader import Checkpoint, open_checkpoint
from rbe_cli.errors import RBEError

#: What is fetched: safetensors weights and the small files beside them.
PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*"]
#: Other frameworks' copies of the same weights.
_IGNORED = ["onnx/*", "openvino/*", "coreml/*", "flax/*", "*.msgpack", "original/*"]
_REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def looks_like_repo_id(source: str) -> bool:
    """Whether a source that is no local path could be a repository.

    >>> looks_like_repo_id("gpt2"), looks_like_repo_id("org/model"), looks_like_repo_id("./model")
    (True, True, False)
    """
    return bool(_REPO_ID.fullmatch(source)) and not source.startswith(".") and not source.endswith(".safetensors")


def open_repository(repo_id: str, revision: str | None = None) -> Checkpoint:
    """Fetch (or find in the cache) a repository's checkpoint and open it. Raises RBEError saying what to do."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=PATTERNS, ignore_patterns=_IGNORED))
    except errors.GatedRepoError:
        raise RBEError(f"{repo_id}: gated; accept its terms on the hub, then log in with `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise RBEError(
            f"{repo_id}: no such local path, and no such repository on the hub (or it is private: `hf auth login`)"
        ) from None
    except errors.RevisionNotFoundError:
        raise RBEError(f"{repo_id}: no revision {revision!r}; see the branches and tags on its hub page") from None
    except errors.LocalEntryNotFoundError:
        reason = "offline mode is on" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
        raise RBEError(f"{repo_id}: no such local path, not in the hub cache, and {reason}") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RBEError(f"{repo_id}: cannot be fetched from the hub ({reason})") from None
    checkpoint = open_checkpoint(folder)
    checkpoint.name = repo_id
    checkpoint.revision = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    return checkpoint
