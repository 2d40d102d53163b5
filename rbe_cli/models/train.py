"""Train the mini GPT-2 that ships with the package, from scratch, on one processor core.

The committed folder ``rbe_cli/models/mini_gpt2``, and the calibration text beside it, are what this one command wrote::

    python -m rbe_cli.models.train --out rbe_cli/models/mini_gpt2

with Python 3.11, torch 2.13.0 (CPU) and Debian's ``bible-kjv`` 4.38 (``apt-get install
bible-kjv bible-kjv-text``).  Seed, thread count and data order are fixed, so the same machine
and torch build write the same weights again; another processor rounds differently and gets
slightly different ones.

Text: the King James Bible (public domain), printed by the ``bible`` command one verse a line.
The leading references ("Ge1:1 ") are dropped and a blank line is put between chapters; a token
is a byte.  Held out: 65536 bytes in a row from the first verse that begins in the second half
of the text (in the Psalms).  Training never sees them.

The network is GPT-2's own (learned positions, pre-norm, gelu_new, tied output), written out
below with Hugging Face's module names and Conv1D layout so that its state dict is the
checkpoint.
"""

import argparse
import csv
import json
import math
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB, CONTEXT, WIDTH, LAYERS, HEADS = 256, 256, 128, 5, 4
HELD_OUT_BYTES = 65536
CALIBRATION_BYTES, CALIBRATION_PARTS = 65536, 16  # at most, in all; of how many places
STRIDE = 128  # of the evaluation windows: each byte but the first few has >= 128 before it
WARM_UP, FINAL_LR_SHARE, WEIGHT_DECAY, CLIP = 200, 0.02, 0.1, 1.0
SEED, LOG_EVERY = 1611, 500

VERSE = re.compile(r"^(\d?[A-Za-z]+\d+):\d+ (.*)$")


class Conv1D(nn.Module):
    """A linear layer whose weight is stored inputs x outputs, as GPT-2 does."""

    def __init__(self, inputs: int, outputs: int, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn = Conv1D(WIDTH, 3 * WIDTH)
        self.c_proj = Conv1D(WIDTH, WIDTH, 0.02 / math.sqrt(2 * LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.c_attn(x).split(WIDTH, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return out


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc = Conv1D(WIDTH, 4 * WIDTH)
        self.c_proj = Conv1D(4 * WIDTH, WIDTH, 0.02 / math.sqrt(2 * LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class GPT2(nn.Module):
    """Bytes in, logits of the next byte out; the output matrix is ``wte`` again."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCAB, WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)
        # Larger than GPT-2's 0.02, and positions begin as waves: looking back a fixed number of
        # bytes is then learned in a fraction of the steps.
        nn.init.normal_(self.wte.weight, std=0.1)
        angles = torch.arange(CONTEXT)[:, None] * 1000.0 ** (-torch.arange(0, 1, 2 / WIDTH))
        self.wpe.weight.data = 0.1 * torch.cat([angles.sin(), angles.cos()], dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def clean(dump: str) -> bytes:
    """The verses of a ``bible -f`` dump, one a line, a blank line between chapters."""
    lines: list[str] = []
    chapter = ""
    for line in dump.splitlines():
        match = VERSE.match(line)
        if match is None:
            raise ValueError(f"not a verse with its reference: {line[:60]!r}")
        if lines and match[1] != chapter:
            lines.append("")
        chapter = match[1]
        lines.append(match[2].strip())
    return ("\n".join(lines) + "\n").encode("ascii")


def split(text: bytes) -> tuple[bytes, bytes]:
    """What to train on and the held-out stretch."""
    start = text.index(b"\n", len(text) // 2) + 1
    end = start + HELD_OUT_BYTES
    return text[:start] + text[end:], text[start:end]


def calibration(seen: bytes) -> bytes:
    """Text to calibrate on: 16 stretches of whole verses, evenly over what was trained on; nothing held out."""
    parts = []
    for i in range(CALIBRATION_PARTS):
        start = seen.index(b"\n", i * len(seen) // CALIBRATION_PARTS) + 1
        parts.append(seen[start : seen.rindex(b"\n", start, start + CALIBRATION_BYTES // CALIBRATION_PARTS) + 1])
    return b"".join(parts)


def tensor_of(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).astype(np.int64))


@torch.no_grad()
def bits_per_byte(model: GPT2, text: Tensor) -> float:
    """Mean bits over every byte of ``text`` but its first, which has nothing before it.

    Windows of 256 bytes, 128 apart: the first is scored whole, the others on what is new.
    """
    total, scored = 0.0, 0  # `scored` targets are done: text[1 : scored + 1]
    while scored < len(text) - 1:
        end = CONTEXT if scored == 0 else min(scored + STRIDE, len(text) - 1)
        begin = max(0, end - CONTEXT)
        logits = model(text[None, begin:end])[0, scored - begin :]
        total += F.cross_entropy(logits, text[scored + 1 : end + 1], reduction="sum").item()
        scored = end
    return total / scored / math.log(2)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to a small share of the peak."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    cosine = 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))
    return peak * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine)


def config() -> dict[str, object]:
    """config.json, as transformers reads it."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_positions": CONTEXT,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": None,
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }


def train(text: bytes, out: Path, steps: int, batch: int, peak: float) -> None:
    """Train a model on ``text`` and write its folder."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    out.mkdir(parents=True, exist_ok=True)

    train_bytes, held_out_bytes = split(text)
    data, held_out = tensor_of(train_bytes), tensor_of(held_out_bytes)
    model = GPT2()
    matrices: dict[str, Any] = {"params": [p for p in model.parameters() if p.ndim == 2]}
    vectors: dict[str, Any] = {"params": [p for p in model.parameters() if p.ndim == 1]}
    vectors["weight_decay"] = 0.0
    optimizer = torch.optim.AdamW(
        [matrices, vectors], lr=peak, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True
    )

    begun, recent = time.monotonic(), 0.0
    window = torch.arange(CONTEXT + 1)
    with (out / "train_log.csv").open("w", newline="") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(["step", "seconds", "lr", "train_bits_per_byte", "held_out_bits_per_byte"])
        for step in range(steps):
            lr = learning_rate(step, steps, peak)
            for group in optimizer.param_groups:
                group["lr"] = lr
            chunk = data[torch.randint(len(data) - CONTEXT, (batch, 1)) + window]
            logits = model(chunk[:, :-1]).view(-1, VOCAB)
            loss = F.cross_entropy(logits, chunk[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            recent += loss.item() / math.log(2) / LOG_EVERY
            if (step + 1) % LOG_EVERY == 0:
                held = bits_per_byte(model, held_out)
                seconds = time.monotonic() - begun
                row = [step + 1, f"{seconds:.0f}", f"{lr:.3g}", f"{recent:.4f}", f"{held:.4f}"]
                log.writerow(row)
                file.flush()
                print(*row, flush=True)
                recent = 0.0

    tensors = {f"transformer.{name}": p.detach() for name, p in model.state_dict().items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config(), indent=2) + "\n")
    (out / "heldout.txt").write_bytes(held_out_bytes)
    out.with_name(f"{out.name}_calibration.txt").write_bytes(calibration(train_bytes))
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, held-out bits per byte {bits_per_byte(model, held_out):.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the mini GPT-2 on the King James Bible.")
    parser.add_argument("--text", type=Path, help="a `bible -f gen1:1-rev22:21` dump, kept")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=10500)
    parser.add_argument("--batch", type=int, default=8, help="windows of 256 bytes a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate")
    args = parser.parse_args()
    if args.text is None:
        command = ["bible", "-f", "gen1:1-rev22:21"]
        dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    else:
        dump = args.text.read_text(encoding="ascii")
    train(clean(dump), args.out, args.steps, args.batch, args.lr)


if __name__ == "__main__":
    main()
