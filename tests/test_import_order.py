"""Imports go one way, down: from the command line through the operations to the kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rbe_cli"
#: What stands in a row imports from the rows above it, and from its own folder.
ORDER = (
    ("errors", "dtypes", "elements", "metrics", "imports", "interrupts", "models"),
    ("files", "kernels"),
    ("checkpoint", "codec"),
    ("container",),
    ("layers",),
    ("calibration",),
    ("operations",),
    ("cli",),
    ("__main__",),
)
#: The same within the codec.
CODEC = (
    ("side_info", "tiles", "workspace"),
    ("parameters", "source"),
    ("residual",),
    ("lossless", "structure"),
    ("choice",),
    ("tensor_codec",),
    ("warm_up",),
)


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every module with the name of what it stands in: a folder, or itself."""
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if inside.name != "__init__.py" or len(inside.parts) > 1:
            yield inside.parts[0].removesuffix(".py"), path


def _imported(path: Path, package: str) -> Iterator[str]:
    """What a module imports from below a package, `if TYPE_CHECKING` or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix(package + ".") for name in names if name.startswith(package + "."))


@pytest.mark.parametrize(("package", "order"), [("rbe_cli", ORDER), ("rbe_cli.codec", CODEC)])
def test_nothing_imports_what_is_above_it(package: str, order: tuple[tuple[str, ...], ...]) -> None:
    rank = {name: row for row, names in enumerate(order) for name in names}
    folder = PACKAGE.parent.joinpath(*package.split("."))
    wrong = [
        f"{path.relative_to(folder)} imports {package}.{name}"
        for own, path in _modules(folder)
        for name in _imported(path, package)
        if (below := name.split(".")[0]) in rank and below != own and rank[below] >= rank[own]
    ]
    assert not wrong
    assert {own for own, _ in _modules(folder)} == set(rank)
