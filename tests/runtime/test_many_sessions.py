"""A state machine over many sessions: whatever order things come in, every stream is its own plain reference."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from odestream.runtime import InputError, Output, StateError, TimeError, load
from odestream.runtime.fleet import Fleet, Observation
from odestream.runtime.flight import replay, resume
from odestream.runtime.recorder import Recorder, read_segments
from odestream.runtime.session import Stream
from tests.helpers.streams import SECOND, same, same_state
from tests.helpers.tiny_bundle import Tiny, write_tiny

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3)
MASKS = st.none() | st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=3)
GAPS = st.integers(1, 3 * SECOND)


class Sessions(RuleBasedStateMachine):
    """A fleet that is opened, stepped, saved, killed, resumed and put away, beside one plain stream for each name."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.model = load(write_tiny(self.path / "bundle", Tiny(gain=3.0)))
        self.recorder = Recorder(self.path / "log", 1 << 16)
        self.fleet = Fleet(self.model, recorder=self.recorder)
        self.references: dict[str, Stream] = {}
        self.saved: tuple[bytes, dict[str, Any]] | None = None

    def reference(self, name: str) -> Stream:
        return self.references.get(name) or self.model.stream()

    @rule(name=NAMES, x=VALUES, gap=GAPS, mask=MASKS)
    def step(self, name: str, x: list[float], gap: int, mask: list[float] | None) -> None:
        stream = self.reference(name)
        t = (stream.last_tick or 0) + gap
        (answer,) = self.fleet.step([Observation(name, x, t, mask)])
        assert isinstance(answer, Output)
        assert same(answer, stream.step(x, t, mask))
        self.references[name] = stream

    @rule(name=NAMES, fault=st.sampled_from(["nan", "shape", "time", "overflow", "float time"]))
    def fault(self, name: str, fault: str) -> None:
        last = self.reference(name).last_tick
        kind, x, t = {
            "nan": (InputError, [1, np.nan, 3], (last or 0) + 1),
            "shape": (InputError, [1, 2], (last or 0) + 1),
            "time": (InputError, [1, 2, 3], 1 << 63),
            "overflow": (StateError, [3e38, 0, 0], (last or 0) + 1),
            "float time": (InputError, [1, 2, 3], 1.5),
        }[fault]
        if fault == "time" and last is not None:
            t = last
        (answer,) = self.fleet.step([Observation(name, x, t)])  # type: ignore[arg-type]
        assert isinstance(answer, TimeError if fault == "time" else kind)  # type: ignore[arg-type]

    @precondition(lambda self: self.references)
    @rule(data=st.data(), gap=GAPS)
    def predict(self, data: st.DataObject, gap: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.references)))
        t = (self.references[name].last_tick or 0) + gap
        assert same(self.fleet.predict(name, t), self.references[name].predict(t))

    @precondition(lambda self: self.fleet.awake)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        self.fleet.evict([data.draw(st.sampled_from(sorted(self.fleet.awake)))])

    @precondition(lambda self: self.references)
    @rule()
    def snapshot(self) -> None:
        self.saved = self.fleet.snapshot(), {name: stream.save() for name, stream in self.references.items()}

    @precondition(lambda self: self.saved)
    @rule()
    def restore(self) -> None:
        """The streams of the snapshot are as they were then, the others stay."""
        if self.saved is not None:
            self.fleet.restore(self.saved[0])
            for name, state in self.saved[1].items():
                self.references[name] = Stream(self.model, state)

    @rule()
    def kill_and_resume(self) -> None:
        """As a process that ends without a word: nothing is left but the log."""
        self.recorder.close()
        self.recorder = Recorder(self.path / "log", 1 << 16)
        self.fleet = resume(self.model, self.path / "log", self.recorder)

    @invariant()
    def every_stream_is_its_reference(self) -> None:
        states = self.fleet.states()
        assert set(states) == set(self.references)
        assert all(same_state(state, self.references[name].save()) for name, state in states.items())

    def teardown(self) -> None:
        assert all(row.same for row in replay(Fleet(self.model), read_segments(self.path / "log")))
        self.recorder.close()
        self.model.close()
        self.folder.cleanup()


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=8, stateful_step_count=30, deadline=None)
