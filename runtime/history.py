"""Late observations, exactly right: a stream goes back to a checkpoint and takes its rows in order of time.

A history keeps a stream's recent rows as they were handed in, and a checkpoint of the stream every few rows. A row that
comes late is put among them; the stream is set back to the last checkpoint before it and steps through all rows since.
Run one by one, that gives the state and counters, bit for bit, of a stream that got the rows in order; where rows were
batched with those of other streams, they agree within the backend's tolerance (see `Batcher.step`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from odestream.runtime.errors import TimeError
from odestream.runtime.policies import Held
from odestream.runtime.records import Output, StreamState

STRIDE = 16
"""Rows between two checkpoints: a checkpoint costs a copy of the state, a late row half a stride of steps more."""
PARTS = 4
"""Checkpoints of a window that is thinned, about; a log holds them for each of its segments."""


@dataclass(frozen=True, eq=False)
class Seen:
    """An observation as it was handed in."""

    tick: int
    x: ArrayLike
    mask: ArrayLike | None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A stream between two rows, and the values that it holds for missing ones."""

    state: StreamState
    held: Held


@dataclass(frozen=True, eq=False)
class Block:
    """A checkpoint and the rows that came after it, up to the next."""

    checkpoint: Checkpoint
    rows: list[Seen]


class History:
    """The rows of one stream since `start`, of which at least `window` are kept; in order of time."""

    def __init__(self, start: Checkpoint, window: int) -> None:
        self._window = window
        self._blocks = [Block(start, [])]

    def recall(self, blocks: Sequence[Block]) -> None:
        """Become what another history of the same stream was, or this one thinned."""
        self._blocks = list(blocks)

    def thinned(self) -> list[Block]:
        """Blocks of their own with all rows and few checkpoints, so that a log can hold both.

        Once the log does, the stream takes them too (`recall`): whoever goes on from the log then has the same
        checkpoints as the stream itself, and so gives the same bits.
        """
        most = max(self._window // PARTS, STRIDE)
        kept: list[Block] = []
        for block in self._blocks:
            if kept and len(kept[-1].rows) + len(block.rows) <= most:
                kept[-1].rows.extend(block.rows)
            else:
                kept.append(Block(block.checkpoint, list(block.rows)))
        return kept

    def append(self, row: Seen, checkpoint: Callable[[], Checkpoint]) -> None:
        """Keep a row that was accepted; `checkpoint` makes one of the stream after it."""
        blocks = self._blocks
        blocks[-1].rows.append(row)
        if len(blocks[-1].rows) >= STRIDE:
            blocks.append(Block(checkpoint(), []))
            while sum(len(block.rows) for block in blocks[1:]) >= self._window:
                del blocks[0]

    def insert(
        self,
        row: Seen,
        load: Callable[[Checkpoint], None],
        step: Callable[[Seen], Output],
        checkpoint: Callable[[], Checkpoint],
    ) -> Output:
        """Go back, take `row` and what came after it; the answer to `row`.

        load: sets the stream to a checkpoint. step: takes a row. TimeError where the row's time is taken already, or
        lies before what is kept. After any error the history is as it was; whoever calls this puts the stream back.
        """
        earlier = [place for place, block in enumerate(self._blocks) if _is_before(block.checkpoint, row.tick)]
        if not earlier:
            first = self._blocks[0].checkpoint.state.tick
            raise TimeError(
                f"t = {row.tick} does not come after {first}, as far back as the stream's history reaches; "
                "send it sooner, or let the history reach further (window)"
            )
        place = earlier[-1]
        again = [each for block in self._blocks[place:] for each in block.rows]
        if any(each.tick == row.tick for each in again):
            raise TimeError(f"t = {row.tick} was given before; send each time once")
        again.insert(sum(each.tick < row.tick for each in again), row)
        start = self._blocks[place].checkpoint
        changed = History(start, self._window)
        changed._blocks = [*self._blocks[:place], Block(start, [])]
        load(start)
        answers = {}
        for each in again:
            answers[each.tick] = step(each)
            changed.append(each, checkpoint)
        self._blocks = changed._blocks
        return answers[row.tick]


def _is_before(checkpoint: Checkpoint, tick: int) -> bool:
    return checkpoint.state.tick is None or checkpoint.state.tick < tick
