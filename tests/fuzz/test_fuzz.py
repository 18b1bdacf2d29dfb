"""The fuzz targets: the committed corpus through each of them always, a minute of fuzzing each in the slow tier."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from odestream.runtime import Model
from tests.fuzz.targets import targets

HERE = Path(__file__).parent
NAMES = ("manifest", "snapshot", "table", "log")


def corpus(name: str) -> list[Path]:
    return sorted((HERE / "corpus" / name).iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_and_every_cut_of_it_are_read_or_refused_with_a_typed_error(name: str, model: Model) -> None:
    target, files = targets(model.manifest)[name], corpus(name)
    assert files
    for data in (path.read_bytes() for path in files):
        for length in range(0, len(data) + 1, max(1, len(data) // 100)):
            target(data[:length])


def test_every_target_has_a_corpus_and_is_fuzzed(model: Model) -> None:
    assert set(targets(model.manifest)) == set(NAMES)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install 'odestream[fuzz]'")
@pytest.mark.parametrize("name", NAMES)
def test_a_minute_of_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    command = [sys.executable, str(HERE / "fuzz.py"), name, str(found), str(HERE / "corpus" / name)]
    limits = ["-max_total_time=60", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]
    done = subprocess.run([*command, *limits], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    executions = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert executions is not None
    assert int(executions[1]) > 10_000
