"""Streams stepped together through bindings of many rows, for engines that do not step streams by themselves.

Each row goes through what `Stream.step` goes through, on the stream's own buffers: its observation is checked, its
bucket chosen from its own past, its result judged, run again, accepted. Only the engine's call is shared: rows are
gathered into a binding of many rows, and their results handed back. So a row's fate is its own, and a row that is
alone in its bucket, or must cross its gap in several calls, runs as if there were no batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from numpy.typing import ArrayLike, NDArray

from odestream.runtime.arena import Arena, Layout
from odestream.runtime.backends import Binding, Engine, Rows
from odestream.runtime.contract.rule import Verdict
from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.core import EngineCore
from odestream.runtime.errors import OdestreamError
from odestream.runtime.records import Output
from odestream.runtime.solving import Crossing


class EngineBatch:
    """See `odestream.runtime.backends.StreamBatch`. largest: most rows of one engine call.

    Buffers are kept for a dozen sizes.
    """

    def __init__(self, engine: Engine, spec: StepSpec, largest: int) -> None:
        self._engine, self._spec, self._largest = engine, spec, largest
        self._tables: dict[int, _Table] = {}

    def step(self, cores: Sequence[EngineCore], x: Rows, t: Rows, mask: Rows) -> list[Output | OdestreamError]:
        """One observation for each core, rows as in `Stream.step`; a row that fails has its error as its answer."""
        batch = [_Row(*row) for row in zip(cores, x, t, mask, strict=True)]
        waiting = [row for row in batch if row.attempt(row.begin) and row.answer is None]
        while waiting:
            for group in self._groups(waiting):
                self._run(group)
                for row in group:
                    row.attempt(row.judge)
            waiting = [row for row in waiting if row.answer is None]
        return [row.answer for row in batch if row.answer is not None]

    def _groups(self, waiting: Iterable[_Row]) -> list[list[_Row]]:
        """Rows of one bucket each, at most `largest` of them."""
        by_label: dict[str, list[_Row]] = {}
        for row in waiting:
            by_label.setdefault(row.label, []).append(row)
        return [
            group[start : start + self._largest]
            for group in by_label.values()
            for start in range(0, len(group), self._largest)
        ]

    def _run(self, group: list[_Row]) -> None:
        """Run each row's graph, its result left in its stream's own buffers."""
        if len(group) > 1:
            bindings = [row.binding for row in group]
            try:
                self._table(len(group)).run(group[0].label, bindings)
            except OdestreamError:
                pass  # one row may have caused it: each runs alone
            else:
                return
        for row in group:
            row.attempt(row.run)

    def _table(self, count: int) -> _Table:
        size = min(_size(count), self._largest)
        if size not in self._tables:
            self._tables[size] = _Table(self._engine.bind(size), self._spec)
        return self._tables[size]


class _Row:
    """One stream's observation on its way. answer: None until it has one."""

    def __init__(self, core: EngineCore, x: ArrayLike, t: object, mask: ArrayLike | None) -> None:
        self._core = core
        self.answer: Output | OdestreamError | None = None
        self._observation = (x, t, mask)
        self._crossing = Crossing(None)
        self._steps = 0
        self._reruns = 0

    @property
    def binding(self) -> Binding:
        """The stream's own buffers."""
        return self._core.binding

    @property
    def label(self) -> str:
        """The graph to run next."""
        return self._core.solver.labels[self._steps]

    def attempt(self, action: Callable[[], None]) -> bool:
        """Do it; where it fails, that is the row's answer."""
        if self.answer is None:
            try:
                action()
            except OdestreamError as error:
                self.answer = error
        return not isinstance(self.answer, OdestreamError)

    def begin(self) -> None:
        """Check the observation and choose its bucket; cross at once a gap that no single call may cross."""
        self._crossing = self._core.arrive(*self._observation)
        self._steps = self._core.solver.begin(self._crossing)
        if self._steps == 0:
            self._cross()

    def run(self) -> None:
        """Run the row by itself."""
        self.binding.run(self.label)

    def judge(self) -> None:
        """Accept what was run, have it run again, or split its gap."""
        crossing = self._crossing
        gap = crossing.now - crossing.last
        verdict, wanted = self._core.solver.weigh(crossing, gap, self._steps, self._reruns)
        if verdict is Verdict.RERUN:
            self._steps, self._reruns = wanted, self._reruns + 1
        elif verdict is Verdict.SPLIT:
            self._cross()
        else:
            self.answer = self._core.accept(crossing)

    def _cross(self) -> None:
        x, _, mask = self._observation
        self._core.cross(self._crossing, x, mask)
        self.answer = self._core.accept(self._crossing)


class _Table:
    """A binding of many rows, and where each row's values lie in it. Rows that are not loaded hold what they held."""

    def __init__(self, binding: Binding, spec: StepSpec) -> None:
        self._binding, size = binding, binding.batch
        self._inputs: list[tuple[str, NDArray[Any]]] = list(self._binding.inputs.items())
        self._layout, outputs = Layout(spec.state, size), Layout(spec.outputs, size)
        self._own_state, self._own_outputs = _spans(Layout(spec.state, 1)), _spans(Layout(spec.outputs, 1))
        self._loaded = self._binding.arena
        self._rows = _tables(self._layout, self._loaded)
        self._outputs = _tables(outputs, self._binding.flat_outputs)
        self._one = Layout(spec.state, 1).empty()

    def run(self, label: str, owners: Sequence[Binding]) -> None:
        """Run streams' inputs and states together, and leave each its result as if its own binding had run."""
        for index, own in enumerate(owners):
            self._load(index, own)
        self._binding.set_state(self._loaded)
        self._binding.run(label)
        results = _tables(self._layout, self._binding.next_arena)
        for index, own in enumerate(owners):
            self._unload(index, own, results)

    def _load(self, index: int, own: Binding) -> None:
        for name, values in self._inputs:
            values[index] = own.inputs[name][0]
        arena = own.arena
        for place, table in zip(self._own_state, self._rows, strict=True):
            table[index] = arena[place]

    def _unload(self, index: int, own: Binding, results: Sequence[Arena]) -> None:
        one, outputs = self._one, own.flat_outputs
        for place, table in zip(self._own_state, results, strict=True):
            one[place] = table[index]
        own.set_next_state(one)
        for place, table in zip(self._own_outputs, self._outputs, strict=True):
            outputs[place] = table[index]


def _spans(single: Layout) -> list[slice]:
    """Where each tensor lies in an arena of one row."""
    starts = [*single.offsets.values(), single.size]
    return [slice(start, end) for start, end in pairwise(starts)]


def _tables(layout: Layout, arena: Arena) -> list[Arena]:
    """A view `[B, size]` of each tensor."""
    return [view.reshape(layout.batch, -1) for view in layout.views(arena).values()]


def _size(count: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, … that holds `count` rows; less than half as many are to spare."""
    power = 1 << (count - 1).bit_length()
    return power if count > power * 3 // 4 or power < 4 else power * 3 // 4
