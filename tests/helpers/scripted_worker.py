"""A worker that builds no engine but does what its job's target says, one word after another."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from odestream.export import engine_worker
from odestream.export.engine import Built, Report
from odestream.runtime.errors import CompatError


def serve() -> None:
    """`engine_worker.serve`, with the script in the place of the package's build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_worker, "load_package", str.split)
        patch.setattr(engine_worker, "build_engine", _follow)
        engine_worker.serve()


def _follow(script: list[str], *given: Any) -> tuple[Built, None]:
    report: Report = given[-1]
    for done, word in enumerate(script):
        report(word, done)
        if word == "refuse":
            raise CompatError("too old; take another")
        if word == "fail":
            raise ValueError("3 is no place")
        if word == "sleep":
            time.sleep(3600)
        if word == "exit":
            os._exit(3)
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    return Built(script[-1].encode(), 1, {}, ""), None
