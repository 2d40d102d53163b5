"""docs/objective.md: which error shaping models feel least, every candidate measured on three models.

    python -m tests.benchmarks.objective measure
    python -m tests.benchmarks.objective write

A candidate says how the step of a weight follows the scales of its input and of its output channel. `measure` keeps
what it measured in the work folder and measures only what is not there; one core, less than 20 minutes. Needs torch and
transformers, the MiniLM weights (make minilm), and the Llama that `tests.benchmarks.model_quality` trains.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from rbe_cli import models
from rbe_cli.calibration.batches import by_length, sentences
from rbe_cli.calibration.importance import Importance
from rbe_cli.calibration.importance_file import read_importance
from rbe_cli.checkpoint.reader import open_checkpoint
from rbe_cli.codec.residual.noise_shaping import Inputs, Shaping
from rbe_cli.container.folder import Folder
from rbe_cli.layers.gpt2 import GPT2
from rbe_cli.layers.model_files import ModelFiles
from rbe_cli.layers.weights import DenseMatrix
from rbe_cli.operations.calibrate import calibrate
from rbe_cli.operations.compress import compress
from rbe_cli.operations.engines import load_model
from rbe_cli.operations.model_quality import score, turned
from rbe_cli.operations.model_text import read_text
from rbe_cli.operations.settings import Settings
from tests.benchmarks.model_quality import Recorded, minilm

RATES = (4.0, 3.0, 2.0)
#: Enough for figures of 1 or 2 %; a higher effort finds the same order.
EFFORT = 3
TOKENS, SENTENCES = 8193, 128
_TABLE = re.compile(r"embed|wte|wpe|lm_head")
Tensors = dict[str, np.ndarray]


class Candidate(NamedTuple):
    """One way to shape the error.

    `inputs`, `outputs`: the step of a weight goes with the scale of its input and output channel to these powers.
    `tables`: so it does in embeddings and heads, too. `finer`: by what factor small token tables have a finer step.
    `guess`: what is known of the inputs' strength, of which the step goes with the inverse: "gains", of the norm
    before, or "measured", by a calibration; nothing by default.
    """

    inputs: float = 0.0
    outputs: float = 0.0
    tables: bool = False
    finer: float = 4.0
    guess: str = ""
    effort: int = EFFORT

    @property
    def key(self) -> str:
        """For the results."""
        return f"in {self.inputs:g} out {self.outputs:g}" + (
            (" tables" if self.tables else "")
            + (f" finer {self.finer:g}" if self.finer != 4 else "")
            + (f" {self.guess}" if self.guess else "")
            + (f" effort {self.effort}" if self.effort != EFFORT else "")
        )


GRID = [
    Candidate(i, o)
    for i, o in (
        (0, 0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1, 1), (0.5, 0), (0, 0.5), (1, 0), (0, 1),
        (0.5, 0.25), (0.25, 0.5), (0.75, 0.5), (0.5, 0.75), (0.75, 0.25), (0.25, 0.75),
    )
]  # fmt: skip
FINER = [Candidate(0.5, 0.5, finer=factor) for factor in (1.0, 2.0, 8.0)]
TABLES = [Candidate(finer=1.0), Candidate(0.5, 0.5, tables=True), *FINER]
GUESSES = [
    Candidate(i, o, guess=guess)
    for guess in ("gains", "measured")
    for i, o in ((0, 0), (0, 0.25), (0, 0.5), (0.25, 0.25), (0.25, 0.5), (0.5, 0.25), (0.5, 0.5))
]
#: The default once more, its noise another one: what differences mean nothing.
AGAIN = [Candidate(0.5, 0.5, effort=effort) for effort in (2, 4)]


@dataclass(frozen=True)
class Trial(Settings):
    """Settings whose shaping is a candidate's."""

    candidate: Candidate = field(default=Candidate(), init=True)
    input_axes: dict[str, int] = field(default_factory=dict)

    def shaping(self, name: str, inputs: Inputs | None = None) -> Shaping:
        if _TABLE.search(name) and not self.candidate.tables:
            return Shaping(geometric=True)
        powers = [self.candidate.inputs, self.candidate.outputs]
        rows, columns = powers if self.input_axes.get(name, 1) == 0 else powers[::-1]
        return Shaping(round(16 * rows), round(16 * columns), geometric=True)

    def finer(self, name: str, share: float) -> float:
        return self.candidate.finer if super().finer(name, share) > 1 else 1.0

    def recorded(self) -> dict[str, Any]:
        return {}


class Subject:
    """One model: its matrices, what can be known of their inputs, and how far a changed one is from it.

    The figure is KL in nats per token for a language model, 1 - cosine of a sentence's embedding for an encoder.
    """

    def __init__(self, name: str, source: Path, work: Path) -> None:
        self.name, self.work = name, work
        self.files = ModelFiles.open(str(source))
        self.tensors: Tensors = {
            k: v for k, v in load_file(source / "model.safetensors").items() if v.dtype != np.int64
        }
        self.results = work / f"objective-{name}.json"
        self.rows: dict[str, Any] = json.loads(self.results.read_text()) if self.results.exists() else {}
        self.importance = self._calibrated(source)
        self.axes = {n: (0 if name == "mini-gpt2" and ".c_" in n else 1) for n in self.matrices()}
        self.set_up()

    def set_up(self) -> None:
        """Load the model; what `figures` needs."""
        raise NotImplementedError

    def figures(self, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the figure over independent parts of the held-out text, and what to divide by; float64[parts]."""
        raise NotImplementedError

    def norm(self, name: str) -> str | None:
        """The norm before a matrix: its name without `.weight`."""
        raise NotImplementedError

    def matrices(self) -> list[str]:
        """Which tensors are coded; the others stay exact and are not counted."""
        return [name for name, tensor in self.tensors.items() if tensor.ndim == 2]

    def _calibrated(self, source: Path) -> Importance:
        path = self.work / f"importance-{self.name}.safetensors"
        if not path.exists():
            calibrate(str(source), path, text=models.calibration_text())
        return read_importance(path)

    def strength(self, name: str, guess: str) -> np.ndarray | None:
        """What is known of the mean squares of a matrix' inputs, float64[n]."""
        if guess == "measured":
            found = self.importance.mean_square(name, self.tensors[name].shape)
            return None if found is None or _TABLE.search(name) else found[1]
        norm = self.norm(name)
        if guess != "gains" or norm is None:
            return None
        # A normalised channel has mean square 1, so what leaves the norm has that of gain and bias.
        gain, bias = (self.tensors.get(f"{norm}.{part}") for part in ("weight", "bias"))
        assert gain is not None
        return np.square(gain, dtype=np.float64) + (0 if bias is None else np.square(bias, dtype=np.float64))

    def measure(self, candidate: Candidate, bits: float) -> None:
        """Code all matrices, run the model, keep the figures."""
        key = f"{candidate.key} at {bits:g}"
        if key in self.rows:
            return
        factors = {}
        for name in self.matrices():
            strength = self.strength(name, candidate.guess)
            if strength is not None:
                root = np.sqrt(np.maximum(strength, 1e-4 * strength.mean()) / strength.mean())
                factors[name] = np.expand_dims(root, 1 - self.axes[name]).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            decoded, size = self._through(Path(folder), candidate, bits, factors)
        sums, counts = self.figures(self.tensors | decoded)
        elements = sum(self.tensors[name].size for name in decoded)
        self.rows[key] = {"bits": 8 * size / elements, "sums": sums.tolist(), "counts": counts.tolist()}
        self.results.write_text(json.dumps(self.rows) + "\n")
        print(f"{self.name}: {key}: {sums.sum() / counts.sum():.5g} at {8 * size / elements:.4f} bits", flush=True)

    def _through(self, folder: Path, candidate: Candidate, bits: float, factors: Tensors) -> tuple[Tensors, int]:
        """Matrices whose inputs are scaled by `factors`, coded and scaled back: as if the steps had been scaled."""
        one = np.float32(1)
        source = {name: np.ascontiguousarray(self.tensors[name] * factors.get(name, one)) for name in self.matrices()}
        save_file(source, folder / "scaled.safetensors")
        settings = Trial(
            bits=bits, effort=candidate.effort, transform="none", jobs=1, candidate=candidate, input_axes=self.axes,
        )  # fmt: skip
        done = compress(open_checkpoint(folder / "scaled.safetensors"), folder / "out", settings)
        coded = Folder.open(folder / "out")
        return {name: coded.tensor(name) / factors.get(name, one) for name in source}, done.size


class Arrays:
    """A `WeightSource` of tensors in memory."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def vector(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def matrix(self, name: str) -> DenseMatrix:
        return DenseMatrix(self.tensors[name])


class MiniGPT2(Subject):
    def set_up(self) -> None:
        self.reference: Any = Recorded(load_model(self.files, "numpy"))
        self.tokens = read_text(self.files, None, TOKENS).tokens

    def figures(self, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        config = GPT2.load(self.files).config
        sums, counts = score(self.reference, GPT2(config, Arrays(tensors)), self.tokens)
        return sums[:, 3], counts

    def norm(self, name: str) -> str | None:
        layer = name.rsplit(".", 3)[0]
        after = {"attn.c_attn.weight": "ln_1", "mlp.c_fc.weight": "ln_2"}.get(name.removeprefix(f"{layer}."))
        return f"{layer}.{after}" if after else None


class TinyLlama(Subject):
    def set_up(self) -> None:
        self.reference = Recorded(load_model(self.files, "transformers"))
        self.model = load_model(self.files, "transformers")
        self.tokens = read_text(self.files, models.path() / "heldout.txt", TOKENS).tokens

    def figures(self, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        fill(self.model.model, tensors)  # type: ignore[attr-defined]
        sums, counts = score(self.reference, self.model, self.tokens)
        return sums[:, 3], counts

    def norm(self, name: str) -> str | None:
        layer, _, part = name.partition(".self_attn.") if "self_attn" in name else name.partition(".mlp.")
        if part.startswith(("q_", "k_", "v_")):
            return f"{layer}.input_layernorm"
        return f"{layer}.post_attention_layernorm" if part.startswith(("gate_", "up_")) else None


class MiniLM(Subject):
    def matrices(self) -> list[str]:
        """The layers'; half the model is a table of words, which the layers' shaping has nothing to do with."""
        return [name for name, tensor in self.tensors.items() if tensor.ndim == 2 and ".layer." in name]

    def set_up(self) -> None:
        from rbe_cli.layers.transformers_model import TransformersEncoder

        texts = sentences(self.files, models.path() / "heldout.txt", 256)
        batches = list(by_length(texts[:: max(1, len(texts) // SENTENCES)]))
        self.model = TransformersEncoder.load(self.files)
        self.answers = [(self.model.embed(batch), batch) for batch in batches]

    def figures(self, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        fill(self.model.model, tensors)
        found = np.concatenate([turned(p, self.model.embed(batch)) for p, batch in self.answers])
        return found, np.ones(found.size)

    def norm(self, name: str) -> str | None:
        number = int(name.split(".layer.")[1].split(".", maxsplit=1)[0])
        if ".self." in name:
            return f"encoder.layer.{number - 1}.output.LayerNorm" if number else "embeddings.LayerNorm"
        return f"encoder.layer.{number}.attention.output.LayerNorm" if ".intermediate." in name else None


def fill(model: Any, tensors: Tensors) -> None:
    """Put tensors into a transformers model, by its own names."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(tensors[name])))


def subjects(work: Path, llama: Path) -> list[Subject]:
    return [
        MiniGPT2("mini-gpt2", models.path(), work),
        TinyLlama("tiny-llama", llama, work),
        MiniLM("minilm", minilm(), work),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "write"))
    parser.add_argument("--work", type=Path, default=Path("build/objective"), help="where results are kept")
    parser.add_argument("--llama", type=Path, default=Path("build/model-quality/tiny-llama"), help="the trained Llama")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page goes")
    args = parser.parse_args()
    if args.step == "write":
        from tests.benchmarks.objective_page import write

        write(args.work, args.docs)
        return
    import torch

    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    for subject in subjects(args.work, args.llama):
        for bits in RATES:
            for candidate in [*GRID, *(TABLES if subject.name != "minilm" else []), *GUESSES, *AGAIN]:
                subject.measure(candidate, bits)


if __name__ == "__main__":
    main()
