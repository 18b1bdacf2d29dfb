"""Bundles that several test files of the runtime share; written once, never changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from odestream.runtime import Model, load
from tests.helpers.tiny_bundle import Tiny, write_tiny

TINY = Tiny()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "bundle", TINY)


@pytest.fixture(scope="session")
def model(tiny_path: Path) -> Iterator[Model]:
    """Shared by tests: never close it."""
    with load(tiny_path) as loaded:
        yield loaded
