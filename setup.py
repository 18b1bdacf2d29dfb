"""Compiles the CPU library of the native backend into the wheel; all else stands in pyproject.toml.

Where there is no compiler, or it fails, the wheel is a pure one: such an installation runs on ONNX Runtime, and can
build the library later by `python -m odestream.runtime.kernels.build`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def compile_library(target: Path) -> bool:
    """Build library and guards into the folder `target`; a sentence for what cannot be, False without the library."""
    for name in ("odestream", "odestream.runtime"):  # without their __init__, which needs what is not installed yet
        module = ModuleType(name)
        module.__path__ = [str(ROOT / Path(*name.split(".")[1:]))]
        sys.modules[name] = module
    from odestream.runtime.errors import CompatError
    from odestream.runtime.kernels.build import build
    from odestream.runtime.kernels.build_guards import build_guards

    try:
        build(target)
    except CompatError as error:
        print(f"the wheel will hold no CPU library: {error}", file=sys.stderr)
        return False
    try:
        build_guards(target)
    except CompatError as error:
        print(f"the wheel will hold no compiled guards: {error}", file=sys.stderr)
    return True


class BuildWithLibrary(build_py):
    """Puts the library where an installed package looks for it. An editable installation builds its own."""

    def run(self) -> None:
        """Copy the modules, then compile."""
        super().run()
        if not self.editable_mode:
            built = compile_library(Path(self.build_lib, "odestream", "runtime", "kernels", "lib"))
            self.distribution.has_ext_modules = lambda: built


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python 3, where it holds the library."""

    def run(self) -> None:
        """Build first: what came of it decides where the wheel may be installed."""
        self.run_command("build_py")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """The one compiled module is for every CPython from 3.11 on, and any other Python does without it."""
        return ("py3", "none", super().get_tag()[2])


setup(cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
