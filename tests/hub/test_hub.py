"""The hub, as a person meets it: the command in a process of its own, against an endpoint on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.endpoint import COMMIT, TAGGED, Done, Endpoint, Repository, run_rbe, serve
from tests.schema import check_document
from tests.synthetic import write_sentence_model, write_sharded_model, write_tiny_model

DENSE = ["2_Dense/model.safetensors", "3_Dense/model.safetensors"]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    where = tmp_path_factory.mktemp("repositories")
    other = dict.fromkeys(
        ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "64.tflite", "onnx/model.onnx",
         "onnx/config.json", "original/params.json", "consolidated.safetensors", "train.py", "sizes.csv"), b"x" * 5000
    )  # fmt: skip
    plain = contents(write_tiny_model(where / "tiny"))
    sentence = contents(write_sentence_model(where / "sentence"))
    tiny = plain | other
    repositories = {
        "org/tiny": Repository({COMMIT: tiny, TAGGED: tiny | {"config.json": b'{"model_type": "tagged"}'}}),
        "org/sharded": Repository({COMMIT: contents(write_sharded_model(where / "sharded")) | other}),
        "org/torch": Repository({COMMIT: {"pytorch_model.bin": b"x", "config.json": b"{}"}}),
        "org/gated": Repository(problem=(403, "GatedRepo")),
        "org/private": Repository(problem=(401, "RepoNotFound")),
        "org/locked": Repository({COMMIT: tiny}, token="hf_good"),
        "org/variant": Repository({COMMIT: {name.replace("model.", "model.fp16."): plain[name] for name in plain}}),
        "org/variants": Repository(
            {COMMIT: {f"{name}.safetensors": plain["model.safetensors"] for name in ("weights", "weights.fp16")}}
        ),
        "org/gap": Repository({COMMIT: {"model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'}}),
        "org/sentence": Repository({COMMIT: sentence | {"4_Other/model.safetensors": b"no weights"}}),
        "org/older": Repository({COMMIT: contents(write_sentence_model(where / "older", "0_Transformer"))}),
        "org/doubles": Repository({COMMIT: sentence | {DENSE[1]: sentence[DENSE[0]]}}),
        "org/broken": Repository(problem=(500, "Broken")),
        "org/refused": Repository(problem=(401, "Invalid credentials in Authorization header")),
        "org/forbidden": Repository(problem=(403, "Forbidden")),
        "org/busy": Repository(problem=(429, "TooManyRequests")),
        "gpt2": Repository({COMMIT: tiny}),
    }
    with serve(repositories) as running:
        yield running


@pytest.fixture
def rbe(endpoint: Endpoint, tmp_path: Path):
    """Run rbe in an empty folder with an empty cache."""
    endpoint.asked.clear()

    def run(*arguments: str, **environment: str) -> Done:
        return run_rbe(endpoint, tmp_path / "work", tmp_path / "home", *arguments, **environment)

    return run


def test_compress_as_typed_and_again_offline(rbe, endpoint: Endpoint, tmp_path: Path) -> None:
    done = rbe("compress", "gpt2", "--k", "5", "--block", "128")
    assert done.returncode == 0, done.stderr
    assert "fetching gpt2 from the hub" in done.stderr
    assert "%|" not in done.stderr, "no bars in a pipe"
    manifest = json.loads((tmp_path / "work" / "gpt2.rbe" / "rbe.json").read_text())
    assert manifest["source"] == "gpt2"
    assert manifest["revision"] == COMMIT
    assert manifest["settings"]["k"] == 5
    assert manifest["settings"]["block"] == 128
    assert endpoint.fetched() == {"model.safetensors", "config.json"}
    assert "1_Pooling/config.json" in {file["path"] for file in manifest["carried"]}
    endpoint.asked.clear()
    again = rbe("inspect", "gpt2", "-q", HF_HUB_OFFLINE="1")
    assert "kurtosis" in again.stdout, again.stderr
    assert not endpoint.asked
    unreachable = rbe("inspect", "gpt2", "-q", HF_ENDPOINT="http://127.0.0.1:9")
    assert "kurtosis" in unreachable.stdout, unreachable.stderr


def test_revision_and_shards(rbe, endpoint: Endpoint, tmp_path: Path) -> None:
    assert rbe("compress", "org/tiny", "--revision", "v1", "-o", "v1", "-q").returncode == 0
    assert json.loads((tmp_path / "work" / "v1" / "rbe.json").read_text())["revision"] == TAGGED
    assert (tmp_path / "work" / "v1" / "files" / "config.json").read_bytes() == b'{"model_type": "tagged"}'
    endpoint.asked.clear()
    done = rbe("compress", "org/sharded", "--dry-run", "-q")
    assert done.returncode == 0
    assert "left out (other weights, or too large): consolidated.safetensors" in done.stdout.splitlines()
    shards = {name for name in endpoint.fetched() if name.endswith(".safetensors")}
    assert shards == {f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)}


def test_a_variant_is_not_fetched(rbe, endpoint: Endpoint) -> None:
    done = rbe("compress", "org/variants", "--dry-run", "-q")
    assert done.returncode == 0, done.stderr
    assert "left out (other weights, or too large): weights.fp16.safetensors" in done.stdout.splitlines()
    assert endpoint.fetched() == {"weights.safetensors"}


@pytest.mark.parametrize(
    ("repository", "shards", "left_out"),
    [
        ("org/sentence", ["model.safetensors", *DENSE], ["4_Other/model.safetensors"]),
        ("org/older", ["0_Transformer/model.safetensors", *DENSE], []),
        ("org/doubles", ["model.safetensors", DENSE[0]], [DENSE[1]]),
    ],
)
def test_modules_in_sub_folders(rbe, tmp_path: Path, repository: str, shards, left_out) -> None:
    seen = json.loads(rbe("inspect", repository, "--json").stdout)
    assert rbe("inspect", repository, HF_HUB_OFFLINE="1").returncode == 1, "no weights are in the cache"
    done = rbe("compress", repository, "-o", "fetched", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["left_out"] == left_out
    manifest = json.loads((tmp_path / "work" / "fetched" / "rbe.json").read_text())
    assert [source["path"] for source in manifest["sources"]] == shards
    held = {tensor["name"] for layer in manifest["layers"] for tensor in layer["tensors"]}
    assert {tensor["name"] for tensor in seen["tensors"]} == held
    assert ("head.weight" in held) == (DENSE[1] in shards)
    again = rbe("compress", repository, "-o", "cached", "-q", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "work" / "fetched") == contents(tmp_path / "work" / "cached")


@pytest.mark.parametrize("repository", ["org/tiny", "org/sharded", "org/variant", "org/sentence"])
def test_inspect_reads_headers_only_however_often(rbe, endpoint: Endpoint, repository: str) -> None:
    for _ in range(2):
        endpoint.asked.clear()
        done = rbe("inspect", repository, "--json")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        document = json.loads(done.stdout)
        check_document(document)
        found = {tensor["name"]: tensor for tensor in document["tensors"]}
        assert found["h.0.attn.weight"]["shape"] == [160, 96]
        assert endpoint.fetched()
        assert max(endpoint.sent().values()) <= 100_001


def test_a_token_from_its_usual_places(rbe, tmp_path: Path) -> None:
    assert rbe("inspect", "org/locked").returncode == 1
    assert rbe("inspect", "org/locked", HF_TOKEN="hf_good").returncode == 0
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text("hf_good")
    assert rbe("compress", "org/locked", "--dry-run", "-q").returncode == 0


def test_what_other_programs_put_in_the_cache_does_not_matter(rbe, tmp_path: Path) -> None:
    assert rbe("compress", "gpt2", "-o", "before", "-q").returncode == 0
    (snapshot,) = (tmp_path / "home").rglob("snapshots/*")
    (snapshot / "junk.py").write_text("junk")
    (snapshot / "consolidated.safetensors").write_bytes((snapshot / "model.safetensors").read_bytes())
    assert rbe("compress", "gpt2", "-o", "after", "-q", HF_HUB_OFFLINE="1").returncode == 0
    work = tmp_path / "work"
    assert contents(work / "before") == contents(work / "after")


@pytest.mark.parametrize(
    ("repository", "arguments", "environment", "words"),
    [
        ("org/missing", [], {}, "no such repository on the hub; check its name"),
        ("mini_gpt2", [], {}, "did you mean mini-gpt2?"),
        ("org/private", [], {}, "or a private one: log in with `hf auth login`"),
        ("org/refused", [], {"HF_TOKEN": "hf_wrong"}, "the hub does not accept the token"),
        ("org/forbidden", [], {}, "the hub does not allow it"),
        ("org/broken", [], {}, "the hub fails (HTTP 500)"),
        ("org/busy", [], {}, "too many requests"),
        ("org/gated", [], {}, "gated; accept its terms"),
        ("org/torch", [], {}, "has no .safetensors files"),
        ("org/gap", [], {}, "has no b.safetensors, which its index names"),
        ("org/tiny", ["--revision", ".."], {"HF_HUB_OFFLINE": "1"}, "not in the hub cache"),
        ("org/tiny", ["--revision", "nowhere"], {}, "no revision 'nowhere'"),
        ("org/tiny", [], {"HF_HUB_OFFLINE": "1"}, "not in the hub cache, and offline mode is on; unset HF_HUB_OFFLINE"),
        ("org/tiny", [], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
    ],
)
@pytest.mark.parametrize("command", ["compress", "inspect"])
def test_every_error_is_its_own_line(rbe, command, repository: str, arguments, environment, words: str) -> None:
    done = rbe(command, repository, "-q", *arguments, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"rbe: {repository}: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


def test_a_local_path_wins(rbe, endpoint: Endpoint, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "work" / "org" / "tiny")
    assert rbe("inspect", "org/tiny", "-q").returncode == 0
    assert not endpoint.asked


def test_every_command_that_reads_a_model_says_that_it_is_fetched(rbe, tmp_path: Path) -> None:
    done = rbe("calibrate", "org/tiny", "--text", __file__)
    assert done.stderr.startswith("fetching org/tiny from the hub\nrbe: ")
    assert done.returncode == 1
    done = rbe("sweep", "gpt2", "--bits", "6", "--efforts", "0", "--no-progress")
    assert done.returncode == 0, done.stderr
    assert "%|" not in done.stderr
