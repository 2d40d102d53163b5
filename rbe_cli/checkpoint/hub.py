"""Checkpoints on the Hugging Face hub, through huggingface_hub: its cache, token, endpoint and offline mode."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rbe_cli import dtypes, models
from rbe_cli.checkpoint.reader import INDEX_SUFFIX, MAX_INDEX, SUFFIX, Checkpoint, open_checkpoint
from rbe_cli.container.names import SUFFIX as LAYER
from rbe_cli.errors import CorruptFile, RBEError, first_line
from rbe_cli.files.plain_file import read_json

#: The small files that are fetched beside the weights.
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*"]
#: Other frameworks' copies of the same weights.
_IGNORED = ["onnx/*", "openvino/*", "coreml/*", "flax/*", "*.msgpack", "original/*"]
_INDEX, _WHOLE = f"model{INDEX_SUFFIX}", f"model{SUFFIX}"
_SHARD = re.compile(rf"model-.*{re.escape(SUFFIX)}")
_NONE = f"has no {SUFFIX} files at its top; rbe reads nothing else, so convert its weights first"
#: Which HTTP library is below, and so what it raises, depends on the version of huggingface_hub.
_TRANSPORTS = ("http", "requests", "urllib3")
#: As huggingface_hub has it: no part may begin or end with a dash or dot, or have two of them together.
_PART = r"(?!.*(--|\.\.))\w([\w.-]{0,94}\w)?"
_REPO_ID = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)
#: How a name ends that is meant for a file or folder, whatever a repository may be called.
_FILES = (SUFFIX, INDEX_SUFFIX, LAYER, ".git")
#: Headers read at once.
_CONNECTIONS = 8


@dataclass(frozen=True)
class RemoteTensor:
    """One tensor of a repository, as its file's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of weights."""
        return dtypes.count(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return dtypes.byte_length(self.dtype, self.shape)


def looks_like_repo_id(source: str) -> bool:
    """Whether a source that is no local path could be a repository.

    >>> looks_like_repo_id("gpt2"), looks_like_repo_id("org/model"), looks_like_repo_id("./model")
    (True, True, False)
    >>> looks_like_repo_id("model.rbe")
    False
    """
    return bool(_REPO_ID.fullmatch(source)) and not source.endswith(_FILES)


def open_repository(
    repo_id: str, revision: str | None = None, *, progress: bool = False, cached_only: bool = False
) -> Checkpoint:
    """Fetch (or find in the cache) a repository's checkpoint and open it. Raises RBEError saying what to do.

    `progress` is whether huggingface_hub may draw its bars on stderr; with `cached_only` the hub is asked for nothing.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars  # type: ignore[attr-defined]

    with _explained(repo_id, revision):
        if not (progress or are_progress_bars_disabled()):
            disable_progress_bars()
        weights, left_out = ([], []) if cached_only else _reachable_weights(repo_id, revision)
        fetch = bool(weights)
        if fetch:
            wanted = _SMALL + weights
        else:
            weights = wanted = _cached_weights(repo_id, revision) or [f"*{SUFFIX}"]
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=wanted, ignore_patterns=_IGNORED, local_files_only=not fetch
        )
    checkpoint = _open_snapshot(repo_id, revision, Path(folder), weights)
    checkpoint.left_out = left_out
    return checkpoint


def _open_snapshot(repo_id: str, revision: str | None, folder: Path, weights: Sequence[str]) -> Checkpoint:
    """Open the part of a folder of the cache that is fetched; other programs may have put more there."""
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    if not any(folder.glob(f"*{SUFFIX}")):
        raise RBEError(f"{repo_id}: {_NONE}")
    checkpoint = open_checkpoint(folder, [name for name in weights if "*" not in name])
    beside = [relative for _, relative in checkpoint.carried]
    kept = set(filter_repo_objects(beside, allow_patterns=_SMALL, ignore_patterns=_IGNORED))
    checkpoint.carried = [(path, relative) for path, relative in checkpoint.carried if relative in kept]
    checkpoint.name = repo_id
    checkpoint.revision = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    return checkpoint


def _reachable_weights(repo_id: str, revision: str | None) -> tuple[list[str], list[str]]:
    """Which files hold the weights, and which others are left out; empty where the hub may not or cannot be asked."""
    from huggingface_hub import errors

    try:
        return ([], []) if is_offline() else _listed_weights(repo_id, revision)
    except Exception as error:
        if isinstance(error, RBEError | errors.HfHubHTTPError) or not _unreachable(error):
            raise
        return [], []


def _listed_weights(repo_id: str, revision: str | None) -> tuple[list[str], list[str]]:
    """The shards, if there is an index of them, else `model.safetensors`, else all there are at the top.

    And the others: a variant, or the weights of a module in a sub-folder.
    """
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(repo_id, revision=revision).siblings or []
    files = [sibling.rfilename for sibling in siblings]
    every = [name for name in files if name.endswith(SUFFIX)]
    top = [name for name in every if "/" not in name]
    if not top:
        raise RBEError(f"{repo_id}: {_NONE}")
    if _INDEX in files:
        weights = [name for name in top if _SHARD.fullmatch(name)] or top
    else:
        weights = [_WHOLE] if _WHOLE in top else top
    return weights, [name for name in every if name not in weights]


def _cached_weights(repo_id: str, revision: str | None) -> list[str]:
    """The same as far as the cache has all of them; an empty list if it does not."""
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> str | None:
        try:
            path = try_to_load_from_cache(repo_id, name, revision=revision)
        except ValueError:  # an index may name what can be no file of a repository
            return None
        return path if isinstance(path, str) else None

    index, whole = cached(_INDEX), cached(_WHOLE)
    if index:
        try:
            names = sorted(set(read_json(Path(index), MAX_INDEX)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, CorruptFile):
            return []
        return names if all(isinstance(name, str) and cached(name) for name in names) else []
    if whole:
        return [_WHOLE]
    config = cached("config.json")
    return sorted(path.name for path in Path(config).parent.glob(f"*{SUFFIX}")) if config else []


def is_offline() -> bool:
    """Whether the user wants nothing fetched."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_cached(repo_id: str, revision: str | None = None) -> bool:
    """Whether the cache has the weights of a repository, all of them."""
    return bool(_cached_weights(repo_id, revision))


def read_headers(repo_id: str, revision: str | None = None) -> list[RemoteTensor]:
    """The tensors of a repository, from the headers of its files alone, which are fetched as ranges of bytes.

    Raises RBEError saying what to do.
    """
    from huggingface_hub import HfApi, errors

    with _explained(repo_id, revision):
        names, _ = _listed_weights(repo_id, revision)
        try:
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                headers = pool.map(
                    lambda name: HfApi().parse_safetensors_file_metadata(repo_id, name, revision=revision), names
                )
                found = list(headers)
        except errors.SafetensorsParsingError:
            raise RBEError(f"{repo_id}: a file's header is not one of safetensors") from None
    tensors = []
    for header in found:
        for name, info in header.tensors.items():
            if info.dtype not in dtypes.BITS:
                raise RBEError(f"{repo_id}: tensor {name!r} has dtype {info.dtype}, which this rbe does not know")
            tensors.append(RemoteTensor(name, info.dtype, tuple(info.shape)))
    return tensors


def _unreachable(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.startswith(_TRANSPORTS)


def _status(error: Exception) -> int:
    """The HTTP status an error stands for; 0 for none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _refusal(status: int, reason: str) -> str:
    """What a status of the hub means, and what to do."""
    if status == 401:
        return "the hub does not accept the token; log in anew with `hf auth login`, or unset HF_TOKEN"
    if status == 403:
        return "the hub does not allow it with this token; ask the owner, or log in with `hf auth login`"
    if status == 429:
        return "the hub has had too many requests from here; wait some minutes, or log in with `hf auth login`"
    if status >= 500:
        return f"the hub fails (HTTP {status}); try again later, or set HF_HUB_OFFLINE=1 if it is in the cache"
    return f"cannot be fetched from the hub ({reason})"


def _nowhere(repo_id: str, hub: str) -> RBEError:
    """That a name is neither here nor, for the reason told, on the hub; and which shipped model may be meant."""
    meant = models.like(repo_id)
    advice = f"; did you mean {meant}?" if meant else ""
    return RBEError(f"{repo_id}: no such local path, {hub}{advice}")


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into one line that says what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError:
        raise RBEError(f"{repo_id}: gated; accept its terms on the hub, then log in with `hf auth login`") from None
    except errors.RepositoryNotFoundError as error:
        login = ", or a private one: log in with `hf auth login`" if _status(error) != 404 else "; check its name"
        raise _nowhere(repo_id, f"and no such repository on the hub{login}") from None
    except errors.RevisionNotFoundError:
        raise RBEError(f"{repo_id}: no revision {revision!r}; see the branches and tags on its hub page") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "the hub cannot be reached; check the network"
        if constants.HF_HUB_OFFLINE:
            reason = "offline mode is on; unset HF_HUB_OFFLINE to have it fetched"
        raise _nowhere(repo_id, f"not in the hub cache, and {reason}") from None
    except RBEError:
        raise
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, errors.HfHubHTTPError | errors.HFValidationError):
            raise RBEError(f"{repo_id}: {_refusal(_status(error), reason)}") from None
        if _unreachable(error):
            raise _nowhere(repo_id, f"and the hub cannot be reached ({reason}); check the network") from None
        if isinstance(error, ValueError):
            # Of a file whose name would lead out of the cache.
            raise CorruptFile(f"{repo_id}: {reason}") from None
        raise
