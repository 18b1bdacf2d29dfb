"""The runtime runs on Python 3.10, as JetPack 6 has it: its syntax is tested here, its imports by an interpreter."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from odestream.runtime.kernels.build import SOURCES

ROOT = SOURCES.parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_file_of_the_runtime_is_syntax_of_python_310() -> None:
    files = sorted((ROOT / "runtime").rglob("*.py"))
    assert len(files) > 40
    for path in files:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_a_later_syntax_would_be_noticed() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("type X = int", feature_version=(3, 10))


def test_linter_and_type_checker_hold_the_code_to_python_310() -> None:
    """`make lint` runs both: syntax and annotations, and every name of the standard library."""
    assert 'target-version = "py310"' in PROJECT
    assert 'python_version = "3.10"' in PROJECT
    assert 'requires-python = ">=3.10"' in PROJECT


def test_python_310_imports_the_runtime() -> None:
    """With an interpreter that has its packages: ODESTREAM_PYTHON310 names one, else `python3.10` on the path."""
    python = os.environ.get("ODESTREAM_PYTHON310") or shutil.which("python3.10")
    if python is None and sys.version_info[:2] == (3, 10):
        python = sys.executable
    if python is None:
        pytest.skip("no Python 3.10; name one with the runtime's packages in ODESTREAM_PYTHON310")
    packages = "import numpy, msgspec, safetensors, typer, rich"
    if subprocess.run([python, "-c", packages], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{python} has not the runtime's packages; name one that has in ODESTREAM_PYTHON310")
    code = (
        "import sys; assert sys.version_info[:2] == (3, 10)\n"
        "import odestream.runtime, odestream.runtime.backends.tensorrt, odestream.runtime.backends.engine_store"
    )
    tree = str(Path(ROOT) / ".venv" / "src")
    done = subprocess.run(
        [python, "-c", code], env={**os.environ, "PYTHONPATH": tree}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
