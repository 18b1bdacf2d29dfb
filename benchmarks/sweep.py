"""Measurements that take long, kept one by one: an interrupted sweep goes on where it stopped.

Points of another commit, or of changed files, say nothing about this code: they are never read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import circumstances

CHANGED = "+"  # ends the commit of a checkout that differs from it
UNKNOWN = "unknown"


class Sweep:
    """Points by key, in a JSON file beside the commit, versions and hardware that they were measured with."""

    def __init__(self, path: Path) -> None:
        self.path, self.circumstances = path, circumstances()
        self.points: dict[str, Any] = self._read()

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The point as it was kept, else measured now and kept; it must be plain JSON."""
        if key not in self.points:
            self.points[key] = measure()
            self._write()
        return self.points[key]

    def finish(self) -> None:
        """Remove the file: a finished sweep has a result, and the next one starts anew."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            points, where = dict(found["points"]), found["circumstances"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return {}
        commit = self.circumstances["commit"]
        same = where == self.circumstances and commit != UNKNOWN and not commit.endswith(CHANGED)
        return points if same else {}

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps({"circumstances": self.circumstances, "points": self.points}), encoding="utf-8")
        beside.replace(self.path)
