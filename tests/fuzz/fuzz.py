"""Fuzzes one target: `python tests/fuzz/fuzz.py TARGET [CORPUS …] [libFuzzer options]`, with the extra `fuzz`.

Inputs that reach something new are kept in the first CORPUS; a finding is written to `crash-…` and ends the run.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["odestream.runtime"]):
    from odestream.runtime.bundle import read_bundle
    from tests.fuzz.targets import targets

from tests.helpers.tiny_bundle import write_tiny


def main() -> None:
    """Fuzz the target that the command line names until an option ends it."""
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        manifest = read_bundle(write_tiny(Path(folder) / "bundle")).manifest
    atheris.Setup([sys.argv[0], *options], targets(manifest)[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
