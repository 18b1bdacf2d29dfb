"""Does state survive? Long streams with interruptions, kill −9 at random points, far clocks, and memory over time.

    python benchmarks/soak.py --bundle BUNDLE [--backend B] [--minutes 15]
    python benchmarks/soak.py --quick    a small random cell; checks the script, writes into runs/soak only

Rows are drawn from the bundle's stored vectors, 100 a second. Each part takes its share of the minutes:

streams   64 streams in a fleet with a log, which is saved and restored, put away, and resumed from its log in turn,
          beside a second fleet that gets the same calls and is never touched; every answer and state compared
kills     a child process steps a fleet that keeps a log and writes snapshots, and is killed at a random moment, at
          most 10,000 times; both are then read and compared with streams that were never interrupted
clocks    one stream from day 0, 1, 7, 30 and 365, its phase's origin moved alike
memory    one stream, its process's resident memory at every twentieth

Writes results/soak.json and a section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from odestream.runtime import Model, Output, load
from odestream.runtime.backends import open_engine
from odestream.runtime.fleet import Answer, Fleet
from odestream.runtime.flight import resume
from odestream.runtime.generations import read_generation, write_generation
from odestream.runtime.member import Observation
from odestream.runtime.recorder import Recorder
from results import circumstances_text, markdown_table, publish, write_json

RUNS = Path(__file__).parents[1] / "runs" / "soak"
TICK = 10_000_000  # 100 Hz in ticks of 1 ns
HOUR = 3600 * 100  # rows
STREAMS = 64
MOST_KILLS = 10_000
LONGEST_LIFE = 0.02  # seconds until a child is killed, at most
DAYS = (0, 1, 7, 30, 365)
SHARES = {"streams": 0.5, "kills": 0.35, "clocks": 0.05, "memory": 0.1}
EVERY = 1000  # calls between two interruptions
PAGE = os.sysconf("SC_PAGE_SIZE")


class Rows:
    """Calls of one row for each stream: the same seed gives the same rows, from any call on."""

    def __init__(self, model: Model, streams: int, seed: int = 0) -> None:
        x = model.bundle.vectors().inputs["x"]
        self._values: NDArray[Any] = x.reshape(-1, *x.shape[2:])
        self._streams, self._seed = streams, seed
        self._first = model.manifest.time.origin

    def call(self, number: int) -> list[Observation]:
        """The call of that number."""
        rng = np.random.default_rng([self._seed, number])
        picks = rng.integers(0, len(self._values), self._streams)
        t = self._first + number * TICK
        return [Observation(f"s{i}", self._values[pick], t) for i, pick in enumerate(picks)]

    def calls(self, first: int = 0) -> Iterator[list[Observation]]:
        """All calls from one on."""
        number = first
        while True:
            yield self.call(number)
            number += 1


def main() -> None:
    """Run every part for its share of the time, print the table, and publish."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or _random_bundle(Path(folder) / "bundle")
        with load(bundle, backend=options.backend) as model:
            seconds = {part: 60 * options.minutes * share for part, share in SHARES.items()}
            parts: dict[str, dict[str, Any]] = {
                "streams": interrupted_streams(model, Path(folder), options.streams, seconds["streams"]),
                "kills": kills(model, Path(folder), options.kills, seconds["kills"]),
                "clocks": far_clocks(model, seconds["clocks"]),
                "memory": memory(model, seconds["memory"]),
            }
            about = {"bundle": model.manifest.name, "backend": model.backend, "minutes": options.minutes}
    text = section(about, parts)
    print(text)
    if options.quick:
        write_json(RUNS / "soak.json", about | parts)
    else:
        publish("soak", about | parts, text)
    if any(part.get("differing_bytes") for part in parts.values()):
        sys.exit(1)


def interrupted_streams(model: Model, folder: Path, streams: int, seconds: float) -> dict[str, Any]:
    """A fleet that is saved, put away and resumed from its log, beside one that is left alone."""
    log = folder / "streams"
    touched = Fleet(model, recorder=Recorder(log))
    alone = Fleet(model)
    end, differing, calls, interruptions = time.monotonic() + seconds, 0, 0, 0
    for rows in Rows(model, streams).calls():
        differing += _differing(touched.step(rows), alone.step(rows))
        calls += 1
        if calls % EVERY == 0:
            touched = _interrupt(touched, model, log, interruptions % 3)
            interruptions += 1
            if time.monotonic() > end:
                break
    differing += sum(ours != theirs for ours, theirs in zip(_digest(touched), _digest(alone), strict=True))
    touched.close()
    return {
        "streams": streams,
        "rows": calls * streams,
        "hours_each": calls / HOUR,
        "interruptions": interruptions,
        "differing_bytes": differing,
    }


def _interrupt(fleet: Fleet, model: Model, log: Path, kind: int) -> Fleet:
    """Save and restore, put every second stream away, or begin anew from the log."""
    if kind == 0:
        fleet.restore(fleet.snapshot())
        return fleet
    if kind == 1:
        fleet.evict(fleet.awake[::2])
        return fleet
    fleet.close()
    return resume(model, log, Recorder(log))


def kills(model: Model, folder: Path, most: int, seconds: float) -> dict[str, Any]:
    """Children killed at random moments; what their logs and snapshots hold against streams that were left alone."""
    log, snapshot, streams = folder / "kills", folder / "kills.snapshot", 4
    alone, rows, rng = Fleet(model), Rows(model, streams, 1), random.Random(0)
    digests, end = [_digest(alone)], time.monotonic() + seconds
    count = differing = previous = 0
    Fleet(model, recorder=Recorder(log, 1 << 17)).close()
    while count < most and time.monotonic() < end:
        _live_and_die(model, log, snapshot, rows, rng)
        count += 1
        found = resume(model, log)
        steps = _steps(found)
        while len(digests) <= steps:
            alone.step(rows.call(len(digests) - 1))
            digests.append(_digest(alone))
        differing += _digest(found) != digests[steps]
        if snapshot.exists():
            generation = read_generation(snapshot)
            saved = Fleet(model)
            saved.restore(generation.data)
            previous += generation.path != snapshot
            differing += _digest(saved) != digests[_steps(saved)]
    return {"kills": count, "calls": len(digests) - 1, "previous_generation": previous, "differing_bytes": differing}


def _live_and_die(model: Model, log: Path, snapshot: Path, rows: Rows, rng: random.Random) -> None:
    """A child that goes on from the log; four in five are killed while they step, the others while they begin."""
    told, tells = os.pipe()
    child = os.fork()
    if child == 0:
        _live(model, log, snapshot, rows, tells)
    os.close(tells)
    if rng.random() < 0.8:
        os.read(told, 1)
    time.sleep(rng.random() * LONGEST_LIFE)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told)


def _live(model: Model, log: Path, snapshot: Path, rows: Rows, tells: int) -> None:
    """The child, until the kill."""
    try:
        fleet = resume(model, log, Recorder(log, 1 << 17))
        os.write(tells, b"1")
        for number, call in enumerate(rows.calls(_steps(fleet)), _steps(fleet)):
            fleet.step(call)
            if number % 16 == 0:
                write_generation(snapshot, fleet.snapshot())
    finally:
        os._exit(1)  # only a fault of the child's own gets here


def far_clocks(model: Model, seconds: float) -> dict[str, Any]:
    """The same stream begun on several days; a model's phases count from an origin that is moved with it."""
    rows, differing, steps, end = Rows(model, 1, 2), 0, 0, time.monotonic() + seconds
    with ExitStack() as stack:
        shifts = [day * 86_400 * 10**9 for day in DAYS]
        fleets = [Fleet(stack.enter_context(_moved(model, shift))) for shift in shifts]
        for call in rows.calls():
            answers = [
                fleet.step([replace(row, t=(row.t or 0) + shift) for row in call])
                for fleet, shift in zip(fleets, shifts, strict=True)
            ]
            differing += sum(_differing(answer, answers[0]) for answer in answers[1:])
            steps += 1
            if time.monotonic() > end:
                break
        first, *others = (fleet.states()["s0"].arena.tobytes() for fleet in fleets)
    differing += sum(a != b for other in others for a, b in zip(first, other, strict=True))
    return {"days": DAYS, "steps": steps, "differing_bytes": differing}


def _moved(model: Model, shift: int) -> Model:
    """The same model, its clock's origin `shift` ticks later."""
    spec, manifest = model.manifest.time, model.manifest
    moved = msgspec.structs.replace(manifest, time=msgspec.structs.replace(spec, origin=spec.origin + shift))
    bundle = replace(model.bundle, manifest=moved)
    return Model(bundle, open_engine(model.backend, bundle, 1), "as the other one")


def memory(model: Model, seconds: float) -> dict[str, Any]:
    """Resident memory of this process while one stream steps; its growth, and its slope over the second half."""
    stream, rows = model.stream(), [row for number in range(64) for row in Rows(model, 1, 3).call(number)]
    sizes, steps, t = [], 0, model.manifest.time.origin
    for part in range(20):
        until = time.monotonic() + seconds / 20
        while time.monotonic() < until:
            for row in rows:
                t += TICK
                stream.step(row.x, t)
            steps += len(rows)
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE)
        del part
    slope = float(np.polyfit(np.linspace(0.5, 1, 10), sizes[10:], 1)[0]) * 1e6 / steps
    return {"steps": steps, "growth_bytes": sizes[-1] - sizes[0], "slope_bytes_per_million_steps": slope}


def section(about: dict[str, Any], parts: dict[str, dict[str, Any]]) -> str:
    """The table, and what was run where."""
    s, k, c, m = (parts[name] for name in SHARES)
    slope = f"slope {m['slope_bytes_per_million_steps'] / 1024:,.1f} KiB a million steps"
    rows = [
        ("streams", f"{s['streams']} × {s['hours_each']:.3g} h at 100 Hz, {s['rows']:,} rows", s["interruptions"], s),
        (
            "kill −9",
            f"{k['calls']:,} calls, the generation before read {k['previous_generation']} times",
            k["kills"],
            k,
        ),
        ("clocks", f"{c['steps']:,} steps from day {', '.join(map(str, c['days']))}", len(c["days"]), c),
        ("memory", f"{m['steps']:,} steps, {m['growth_bytes'] / 1024:,.0f} KiB of growth, {slope}", 0, {}),
    ]
    cells = [[name, amount, f"{count:,}", str(part.get("differing_bytes", ""))] for name, amount, count, part in rows]
    table = markdown_table(["", "amount", "interruptions, kills, starts", "differing bytes"], cells)
    how = f"{about['bundle']} on {about['backend']}, {about['minutes']:g} minutes in all."
    return f"{table}\n\n{how} {circumstances_text()}"


def _differing(ours: list[Answer], theirs: list[Answer]) -> int:
    """Bytes of y that differ; an answer that is an error where the other is not counts as all of them."""
    count = 0
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, Output) and isinstance(b, Output):
            count += int((a.y.view(np.uint8) != b.y.view(np.uint8)).sum())
        elif type(a) is not type(b):
            count += max(each.y.nbytes for each in (a, b) if isinstance(each, Output))
    return count


def _steps(fleet: Fleet) -> int:
    """Calls that every stream of the fleet has had."""
    return min((state.counters.steps for state in fleet.states().values()), default=0)


def _digest(fleet: Fleet) -> list[str]:
    """Of each stream, by name, all that it is."""
    states = sorted(fleet.states().items())
    facts = ((s.arena.tobytes(), repr((name, s.tick, s.counters, s.previous)).encode()) for name, s in states)
    return [hashlib.sha256(arena + rest).hexdigest() for arena, rest in facts]


def _random_bundle(path: Path) -> Path:
    from adaptive_models import random_model

    return random_model(path, rows=40).bundle


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Soak a bundle's streams; see the head of this file.")
    parser.add_argument("--bundle", type=Path, help="of `odestream export`; a small random cell unless given")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--minutes", type=float, default=15.0, help="of all parts together")
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--kills", type=int, default=MOST_KILLS, help="at most")
    parser.add_argument("--quick", action="store_true", help="a few seconds: check that the script works")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.kills, options.streams = 0.1, 20, 8
    return options


if __name__ == "__main__":
    main()
