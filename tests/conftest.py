"""What every test starts from: fixed examples, no time limit on a single one."""

from pathlib import Path

import pytest
from hypothesis import settings

from odestream.runtime import CompatError
from odestream.runtime.kernels.build import build, find_compiler, find_library
from tests.helpers.emulated import emulated_library

# Other work on the machine must not fail a test, and a failure must come back on the next run.
settings.register_profile("odestream", deadline=None, derandomize=True)
settings.load_profile("odestream")


@pytest.fixture(scope="session")
def native_library() -> Path:
    """The CPU library of these sources, built if it is not there; skipped where nothing can build it."""
    found = find_library()
    if found is None:
        try:
            find_compiler()
        except CompatError as error:
            pytest.skip(str(error))
        found = build()
    return found


@pytest.fixture(scope="session")
def cuda_on_cpu() -> Path:
    """The CUDA library's own sources compiled for the CPU; skipped where there is no compiler."""
    try:
        return emulated_library()
    except CompatError as error:
        pytest.skip(str(error))
