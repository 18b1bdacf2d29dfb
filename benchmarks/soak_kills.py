"""The soak's kills: children that step a fleet with a log and snapshots, killed at random moments.

A child says through a pipe what it has finished: a call once its answers are there, a snapshot once it is written. What
is found afterwards must hold all of that, and at most the one call more that was finished but not yet told; and it must
be, to the bit, what streams that were never interrupted are after as many calls.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import time
import traceback
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from odestream.runtime import Model
from odestream.runtime.fleet import Fleet
from odestream.runtime.flight import resume
from odestream.runtime.generations import read_generation, write_generation
from odestream.runtime.recorder import Recorder
from soak_rows import Rows, digests, steps

LANES = 8
"""Children at a time, each with a log and a snapshot of its own; most of a life is spent waiting for the disk."""
STREAMS = 2
LONGEST_LIFE = 0.02  # seconds until a child is killed, at most
SNAPSHOT_EVERY = 16  # calls
LIMIT = 1 << 17  # bytes of a log
_WORD = struct.Struct("<cq")  # kind, calls so far
_BEGUN, _STEPPED, _SAVED = b"b", b"c", b"s"


@dataclass
class Found:
    """What was found after `kills` lives. stepping: of them, those that had begun to step when they were killed.
    calls: told to be finished; lost: of them, those that were not there."""

    kills: int = 0
    stepping: int = 0
    calls: int = 0
    lost: int = 0
    snapshots: int = 0
    previous_generation: int = 0
    differing_bytes: int = 0


def kills(model: Model, folder: Path, most: int, seconds: float) -> dict[str, Any]:
    """Kill children for so long, `most` at most, and compare what each leaves behind."""
    shares = [most // LANES + (lane < most % LANES) for lane in range(LANES)]
    lanes = [_begin(_Lane(model, folder / f"kills{lane}", lane), share, seconds) for lane, share in enumerate(shares)]
    found = [asdict(lane.recv()) for lane in lanes]
    return {name: sum(each[name] for each in found) for name in found[0]}


def _begin(lane: _Lane, most: int, seconds: float) -> Connection:
    """Run a lane in a process of its own; where its result comes out."""
    fork = get_context("fork")
    result, tells = fork.Pipe(duplex=False)
    fork.Process(target=lambda: tells.send(lane.run(most, seconds)), daemon=True).start()
    tells.close()  # so that the end of a process that fails is heard of
    return result


class _Lane:
    """One child after another over the same log and snapshot, and a fleet that is left alone."""

    def __init__(self, model: Model, folder: Path, seed: int) -> None:
        folder.mkdir()
        self._model, self._log, self._snapshot = model, folder / "log", folder / "snapshot"
        self._rows, self._rng = Rows(model, STREAMS, seed + 1), random.Random(seed)
        self._alone = Fleet(model)
        self._expected = [digests({})]
        self._known = self._saved = 0  # calls found so far, and in the snapshot

    def run(self, most: int, seconds: float) -> Found:
        """Lives and deaths until there were `most`, or the time is over."""
        found, end = Found(), time.monotonic() + seconds
        Fleet(self._model, recorder=Recorder(self._log, LIMIT)).close()
        while found.kills < most and time.monotonic() < end:
            told = self._live_and_die()
            found.kills += 1
            found.stepping += _BEGUN in told
            self._check_log(told.get(_STEPPED, 0), found)
            self._check_snapshot(told.get(_SAVED, 0), found)
        return found

    def _check_log(self, told: int, found: Found) -> None:
        """told: calls that must be there."""
        fleet = resume(self._model, self._log)
        count = steps(fleet)
        least = max(told, self._known)
        found.calls += least - self._known
        found.lost += max(least - count, 0)
        found.differing_bytes += count > least + 1
        found.differing_bytes += digests(fleet.states()) != self._after(count)
        self._known = count

    def _check_snapshot(self, told: int, found: Found) -> None:
        """told: calls after which a snapshot was written, 0 for none."""
        found.snapshots += told > 0
        self._saved = max(self._saved, told)
        if not self._snapshot.exists():
            found.lost += self._saved
            return
        generation, fleet = read_generation(self._snapshot), Fleet(self._model)
        fleet.restore(generation.data)
        count = steps(fleet)
        found.previous_generation += generation.path != self._snapshot
        found.lost += max(self._saved - count, 0)
        found.differing_bytes += digests(fleet.states()) != self._after(count)

    def _after(self, count: int) -> list[str]:
        """What streams that were left alone are after so many calls."""
        while len(self._expected) <= count:
            self._alone.step(self._rows.call(len(self._expected) - 1))
            self._expected.append(digests(self._alone.states()))
        return self._expected[count]

    def _live_and_die(self) -> dict[bytes, int]:
        """A child that goes on from the log; kind → calls, of what it told last of each kind.

        Four in five are killed once they step, the others wherever they are, most while they begin.
        """
        told, tells = os.pipe()
        child = os.fork()
        if child == 0:
            self._live(tells)
        os.close(tells)
        words = os.read(told, _WORD.size) if self._rng.random() < 0.8 else b""
        time.sleep(self._rng.random() * LONGEST_LIFE)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            raise RuntimeError("a child ended by itself; its error is on standard error")
        while part := os.read(told, 1 << 16):
            words += part
        os.close(told)
        return dict(_WORD.iter_unpack(words))

    def _live(self, tells: int) -> None:
        """The child, until the kill."""
        try:
            fleet = resume(self._model, self._log, Recorder(self._log, LIMIT))
            first = steps(fleet)
            os.write(tells, _WORD.pack(_BEGUN, first))
            for number, call in enumerate(self._rows.calls(first), first + 1):
                fleet.step(call)
                os.write(tells, _WORD.pack(_STEPPED, number))
                if number % SNAPSHOT_EVERY == 0:
                    write_generation(self._snapshot, fleet.snapshot())
                    os.write(tells, _WORD.pack(_SAVED, number))
        except BaseException:  # noqa: BLE001 (whatever it is, the parent must hear of it)
            traceback.print_exc()
        finally:
            os._exit(1)  # only a fault of the child's own gets here
