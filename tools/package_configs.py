"""The build step that puts the presets of `configs/` into the package, so that a plain `pip install` has them too."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py


class PackageConfigs(build_py):
    """`build_py`, and `configs/*.toml` copied to `rbe_cli/configs` of what is built; a checkout is read in place."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "rbe_cli", "configs")
            target.mkdir(parents=True, exist_ok=True)
            for preset in sorted(Path("configs").glob("*.toml")):
                shutil.copyfile(preset, target / preset.name)
