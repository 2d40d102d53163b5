"""The small real checkpoints that ship with the package.

``mini-gpt2`` is a one-million-parameter GPT-2 over bytes, trained by
:mod:`rbe_cli.models.train` on the King James Bible.  Its folder holds what Hugging Face
``GPT2LMHeadModel.from_pretrained`` loads, the text it was never trained on (``heldout.txt``)
and the log of its training. Beside the folder, ``mini_gpt2_calibration.txt`` is 64 kB of what it
was trained on, from 16 places, for ``rbe calibrate``.
"""

from difflib import get_close_matches
from pathlib import Path

NAMES: tuple[str, ...] = ("mini-gpt2",)


def calibration_text(name: str = "mini-gpt2") -> Path:
    """Some of what a shipped model was trained on, to calibrate it with; beside its folder, so never carried along."""
    folder = path(name)
    return folder.with_name(f"{folder.name}_calibration.txt")


def path(name: str = "mini-gpt2") -> Path:
    """The folder of a shipped model; ValueError when no model of that name ships."""
    if name not in NAMES:
        raise ValueError(f"no shipped model is called {name!r}; there is: {', '.join(NAMES)}")
    return Path(__file__).resolve().parent / name.replace("-", "_")


def like(name: str) -> str | None:
    """The shipped model that a mistyped name stands for; None if it is like none.

    >>> like("Mini_GPT2"), like("gpt2")
    ('mini-gpt2', None)
    """
    return next(iter(get_close_matches(name.lower(), NAMES, 1, 0.8)), None)
