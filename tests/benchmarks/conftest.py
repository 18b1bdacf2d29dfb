from __future__ import annotations

from collections.abc import Iterator

import pytest

from adaptive_models import Made, random_model
from odestream.runtime import Model, load


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A small cell with random weights, its bundle, and a bursty stream of 40 rows."""
    return random_model(tmp_path_factory.mktemp("random") / "bundle", rows=40)


@pytest.fixture(scope="session")
def model(made: Made) -> Iterator[Model]:
    """The bundle of `made`, loaded."""
    with load(made.bundle) as model:
        yield model
