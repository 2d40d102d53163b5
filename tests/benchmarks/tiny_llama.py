"""A second architecture for the table: a small Llama over bytes, trained for some minutes on the mini GPT-2's text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

STEPS, BATCH, CONTEXT, PEAK_RATE, SEED = 1500, 8, 256, 3e-3, 1611


def train_llama(folder: Path, steps: int = STEPS) -> float:
    """Train and write the checkpoint, with the held-out text beside it; returns the last losses' mean, bits per byte.

    The text is the King James Bible as `rbe_cli.models.train` prepares it; the held-out part is never seen.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rbe_cli.models.train import clean, learning_rate, split

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    dump = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True, text=True).stdout
    seen, held_out = split(clean(dump))
    data = torch.from_numpy(np.frombuffer(seen, np.uint8).astype(np.int64))
    config = LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=320, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.1)
    window, losses = torch.arange(CONTEXT + 1), []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_RATE)
        chunk = data[torch.randint(len(data) - CONTEXT, (BATCH, 1)) + window]
        logits = model(chunk[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), chunk[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item() / np.log(2))
    model.save_pretrained(folder)
    (folder / "heldout.txt").write_bytes(held_out)
    return float(np.mean(losses[-50:]))
