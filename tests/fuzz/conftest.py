"""A model whose files the targets read."""

from collections.abc import Iterator

import pytest

from odestream.runtime import Model, load
from tests.helpers.tiny_bundle import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(write_tiny(tmp_path_factory.mktemp("fuzz") / "bundle")) as loaded:
        yield loaded
