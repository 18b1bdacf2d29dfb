"""What a model answers to questions about the future, against the truth, and what naive answers are worth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irregular_data import Floats, Problem, Questions
from odestream.models.data import Rows
from odestream.models.forecasting import forecast, walk
from odestream.models.model import Model
from odestream.models.rivals import last_value
from odestream.models.sequences import MAX_CALLS, calls_of, longest_call
from odestream.runtime.table import Series

Answer = Callable[[tuple[Series, ...], Questions], Floats]
"""Streams and questions -> answers [Q, X]."""


def errors(problem: Problem, answer: Answer) -> dict[str, float]:
    """Rate -> mean absolute error in deviations of the training values, over questions and channels."""
    truth, spread = problem.questions.truth, problem.spread
    return {
        f"{rate:g}": float(np.mean(np.abs(answer(tests, problem.questions) - truth) / spread))
        for rate, tests in problem.tests.items()
    }


def answers_of(model: Model, problem: Problem) -> Answer:
    """The model walks each stream once, and is asked from the last row that had come."""

    def answer(tests: tuple[Series, ...], questions: Questions) -> Floats:
        time, longest = problem.data.time, longest_call(model.config, 1)
        calls = [calls_of(s, np.arange(len(s.ticks)), time, longest, MAX_CALLS) for s in tests]
        said = np.empty_like(questions.truth)
        for i, walked in enumerate(walk(model, tests, calls)):
            mine = questions.stream == i
            origins = np.searchsorted(walked.calls.ticks, questions.known[mine], side="right") - 1
            said[mine], _ = forecast(model, time, walked, origins, questions.asked[mine])
        return said

    return answer


def last_values(problem: Problem) -> Answer:
    """Each channel's newest value; the training mean before there is one."""

    def answer(tests: tuple[Series, ...], questions: Questions) -> Floats:
        said = np.empty_like(questions.truth)
        for i, series in enumerate(tests):
            mine = questions.stream == i
            newest = last_value(series, rows_before(series, questions.known[mine]))
            said[mine] = np.where(np.isnan(newest), problem.mean, newest)
        return said

    return answer


def constant(problem: Problem) -> Answer:
    """The training mean."""
    return lambda _, questions: np.broadcast_to(problem.mean, questions.truth.shape)


def rows_before(series: Series, ticks: Rows) -> Rows:
    """The last row at or before each tick; streams begin before they are asked."""
    return np.searchsorted(series.ticks, ticks, side="right") - 1
