"""Fine-tuned models of the mini GPT-2, made in minutes: all weights, low rank merged into them, or one block alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbe_cli import models
from rbe_cli.operations.model_text import HELD_OUT

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "updates.md"
SEED, BATCH, WARM_UP, RANK = 2027, 8, 20, 8
#: The text is cut into pieces of so many bytes, of which every eighth is held out; so many of these are kept.
PIECE, HOLD_OUT, HELD = 2048, 8, 12


def texts() -> tuple[bytes, bytes]:
    """What to train on and what is held out: this repository's own pages and sources."""
    files = [path for path in sorted((ROOT / "docs").glob("*.md")) if path != PAGE] + sorted(
        ROOT.glob("rbe_cli/**/*.py")
    )
    text = b"\n".join(path.read_bytes() for path in files)
    pieces = [text[at : at + PIECE] for at in range(0, len(text) - PIECE, PIECE)]
    held_out = pieces[HOLD_OUT - 1 :: HOLD_OUT]
    some = [held_out[i * len(held_out) // HELD] for i in range(HELD)]
    return b"".join(piece for i, piece in enumerate(pieces) if i % HOLD_OUT != HOLD_OUT - 1), b"".join(some)


def fine_tune(kind: str, folder: Path) -> None:
    """Train one of `KINDS` and write its checkpoint, with the held-out text and what it learned beside it."""
    import torch
    from safetensors.torch import load_file, save_file
    from torch.nn import functional as F
    from torch.nn.utils import parametrize

    from rbe_cli.models.train import CONTEXT, GPT2, VOCAB, bits_per_byte, tensor_of

    steps, peak, choose = KINDS[kind]
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    base = load_file(models.path() / "model.safetensors")
    model = GPT2()
    model.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in base.items()})
    seen, unseen = texts()
    data, held_out = tensor_of(seen), tensor_of(unseen)
    before = bits_per_byte(model, held_out)
    trained = choose(model)
    optimiser = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
    window = torch.arange(CONTEXT + 1)
    for step in range(steps):
        share = min((step + 1) / WARM_UP, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = peak * share
        chunk = data[torch.randint(len(data) - CONTEXT, (BATCH, 1)) + window]
        loss = F.cross_entropy(model(chunk[:, :-1]).view(-1, VOCAB), chunk[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    learned = {"bits per byte before": before, "after": bits_per_byte(model, held_out), "steps": steps}
    print(kind, learned, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"transformer.{name}": tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((models.path() / "config.json").read_bytes())
    (folder / "learned.json").write_text(json.dumps(learned) + "\n")
    (folder / HELD_OUT).write_bytes(unseen)


def _all(model: nn.Module) -> list[Any]:
    return list(model.parameters())


def _low_rank(model: Any) -> list[Any]:
    """Factors beside every matrix of the blocks; the rest is frozen."""
    import torch
    from torch import nn
    from torch.nn.utils import parametrize

    class LowRank(nn.Module):
        """A matrix plus the product of two factors, the second of which begins at 0."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(inputs, RANK) / math.sqrt(inputs))
            self.b = nn.Parameter(torch.zeros(RANK, outputs))

        def forward(self, weight: Any) -> Any:
            return weight + self.a @ self.b

    model.requires_grad_(False)
    factors: list[Any] = []
    for block in model.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            low_rank = LowRank(*layer.weight.shape)
            parametrize.register_parametrization(layer, "weight", low_rank)
            factors += low_rank.parameters()
    return factors


def _last_block(model: Any) -> list[Any]:
    model.requires_grad_(False)
    model.h[-1].requires_grad_(True)
    return list(model.h[-1].parameters())


#: Steps, highest learning rate, and what is trained.
KINDS: dict[str, tuple[int, float, Callable[[Any], list[Any]]]] = {
    "all": (300, 3e-4, _all),
    "lora": (300, 4e-3, _low_rank),
    "last": (300, 1e-3, _last_block),
}
