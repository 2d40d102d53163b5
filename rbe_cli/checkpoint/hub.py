"""Checkpoints on the Hugging Face hub, through huggingface_hub: its cache, token, endpoint and offline mode."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from rbe_cli import dtypes, models
from rbe_cli.checkpoint.reader import Checkpoint, TensorHeader, open_checkpoint
from rbe_cli.checkpoint.weight_files import INDEX_SUFFIX, SUFFIX, WeightFiles, folder_weights, weight_files
from rbe_cli.errors import CorruptFile, RBEError, first_line
from rbe_cli.files.names import LAYER_SUFFIX

#: The small files that are fetched beside the weights.
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*"]
#: Other frameworks' copies of the same weights.
_IGNORED = ["onnx/*", "openvino/*", "coreml/*", "flax/*", "*.msgpack", "original/*"]
_NONE = f"has no {SUFFIX} files at its top; rbe reads nothing else, so convert its weights first"
#: Which HTTP library is below, and so what it raises, depends on the version of huggingface_hub.
_TRANSPORTS = ("http", "requests", "urllib3")
#: As huggingface_hub has it: no part may begin or end with a dash or dot, or have two of them together.
_PART = r"(?!.*(--|\.\.))\w([\w.-]{0,94}\w)?"
_REPO_ID = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)
#: How a name ends that is meant for a file or folder, whatever a repository may be called.
_FILES = (SUFFIX, INDEX_SUFFIX, LAYER_SUFFIX, ".git")
#: Headers read at once.
_CONNECTIONS = 8


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
    from huggingface_hub import errors, snapshot_download

    with _explained(repo_id, revision):
        if not progress:
            _draw_no_bars()
        listed = None if cached_only else _reachable(repo_id, revision)
        if listed:
            weights, every = listed
            wanted = _SMALL + [escape(path) for path in weights.paths]
            folder = snapshot_download(repo_id, revision=revision, allow_patterns=wanted, ignore_patterns=_IGNORED)
            return _open_snapshot(repo_id, revision, Path(folder), weights, every)
        cached = _cached(repo_id, revision)
        if cached is None:
            raise errors.LocalEntryNotFoundError(repo_id)
        return _open_snapshot(repo_id, revision, *cached, cached[1].paths)


def _draw_no_bars() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars  # type: ignore[attr-defined]

    if not are_progress_bars_disabled():
        disable_progress_bars()


def _open_snapshot(
    repo_id: str, revision: str | None, folder: Path, weights: WeightFiles, every: list[str]
) -> Checkpoint:
    """Open the part of a folder of the cache that is fetched; other programs may have put more there.

    Of `every`, paths of safetensors files, those are left out that are not taken.
    """
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    checkpoint = open_checkpoint(folder, weights)
    beside = [relative for _, relative in checkpoint.carried]
    kept = set(filter_repo_objects(beside, allow_patterns=_SMALL, ignore_patterns=_IGNORED))
    checkpoint.carried = [(path, relative) for path, relative in checkpoint.carried if relative in kept]
    taken = {shard.relative for shard in checkpoint.shards}
    checkpoint.left_out = [path for path in every if path not in taken]
    checkpoint.name = repo_id
    checkpoint.revision = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    return checkpoint


def _reachable(repo_id: str, revision: str | None) -> tuple[WeightFiles, list[str]] | None:
    """The weights of a repository, and all safetensors files in it; None where the hub may not or cannot be asked."""
    from huggingface_hub import errors

    try:
        return None if is_offline() else _listed(repo_id, revision)
    except Exception as error:
        if isinstance(error, RBEError | errors.HfHubHTTPError) or not _unreachable(error):
            raise
        return None


def _listed(repo_id: str, revision: str | None) -> tuple[WeightFiles, list[str]]:
    """The same of the hub, which is asked."""
    from huggingface_hub import HfApi, hf_hub_download

    siblings = HfApi().model_info(repo_id, revision=revision).siblings or []
    files = [sibling.rfilename for sibling in siblings]
    names_in = defaultdict[str, list[str]](list)
    for path in files:
        folder, _, name = path.rpartition("/")
        names_in[folder].append(name)
    weights = weight_files(
        lambda folder: names_in[folder], lambda name: Path(hf_hub_download(repo_id, name, revision=revision))
    )
    if not weights.main:
        raise RBEError(f"{repo_id}: {_NONE}")
    missing = sorted(set(weights.main).difference(files))
    if missing:
        raise RBEError(f"{repo_id}: has no {missing[0]}, which its index names; try another --revision")
    return weights, [path for path in files if path.endswith(SUFFIX)]


def _cached(repo_id: str, revision: str | None) -> tuple[Path, WeightFiles] | None:
    """The folder of the cache that has a repository, and its weights, if all of them are there."""
    from huggingface_hub import snapshot_download

    try:
        # No patterns: newer versions of huggingface_hub would miss every file that was not fetched.
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[], local_files_only=True))
    except OSError:
        return None
    weights = folder_weights(folder)
    there = weights.main and all((folder / path).is_file() for path in weights.paths)
    return (folder, weights) if there else None


def is_offline() -> bool:
    """Whether the user wants nothing fetched."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_cached(repo_id: str, revision: str | None = None) -> bool:
    """Whether the cache has the weights of a repository, all of them."""
    try:
        return _cached(repo_id, revision) is not None
    except CorruptFile:  # its index
        return False


def read_headers(repo_id: str, revision: str | None = None) -> list[TensorHeader]:
    """The tensors of a repository, from the headers of its files alone, which are fetched as ranges of bytes.

    Raises RBEError saying what to do.
    """
    from huggingface_hub import HfApi, errors

    with _explained(repo_id, revision):
        _draw_no_bars()
        weights, _ = _listed(repo_id, revision)
        try:
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                found = pool.map(
                    lambda path: HfApi().parse_safetensors_file_metadata(repo_id, path, revision=revision),
                    weights.paths,
                )
                headers = dict(zip(weights.paths, found, strict=True))
        except errors.SafetensorsParsingError:
            raise RBEError(f"{repo_id}: a file's header is not one of safetensors") from None
    tensors = []
    for path in weights.distinct({path: header.tensors for path, header in headers.items()}):
        for name, info in headers[path].tensors.items():
            if info.dtype not in dtypes.BITS:
                raise RBEError(f"{repo_id}: tensor {name!r} has dtype {info.dtype}, which this rbe does not know")
            tensors.append(TensorHeader(name, info.dtype, tuple(info.shape)))
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
