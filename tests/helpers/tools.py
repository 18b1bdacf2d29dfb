"""Programs that a test needs and a machine may lack."""

from __future__ import annotations

import shutil

import pytest


def require(tool: str) -> str:
    """The path of `tool`; the test is skipped where it is not installed."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found
