"""A flow exported with odeint against a bundle's: the first is wrong away from the time it was traced at."""

import numpy as np

from adaptive_models import Made
from adaptive_probe import reached, references, true_errors
from export_contrast import TRACED_AT, Failure, OdeintFlow, Route, cross, export, run, starts
from odestream.runtime import Model

ELSEWHERE = 2.0


def test_a_traced_rk4_is_right_where_it_was_traced_and_wrong_elsewhere_while_the_bundle_is_right_or_flags(
    made: Made, model: Model
) -> None:
    states = starts(model, 6)
    here, there = ([cross(model, state, T) for state in states] for T in (TRACED_AT, ELSEWHERE))
    exported = export(OdeintFlow(made.cell.field, Route("rk4", 0.1), 1e-3, 1e-4), here, "TorchScript")
    assert not isinstance(exported, Failure)
    file, warned = exported
    assert "TracerWarning" in warned
    weights = made.cell.field.weights()
    np.testing.assert_allclose(run(file, here, TRACED_AT), references(here, weights), atol=1e-3)
    expected = references(there, weights)
    assert np.abs(run(file, there, ELSEWHERE) - expected).max() > 0.1
    errors = true_errors(there, reached(there), expected, 1e-3, 1e-4)
    assert all(error <= 1 or flow.output.flagged for error, flow in zip(errors, there, strict=True))
    assert min(errors) > 0


def test_dopri5_does_not_go_through_the_older_exporter(made: Made, model: Model) -> None:
    flows = [cross(model, state, TRACED_AT) for state in starts(model, 2)]
    exported = export(OdeintFlow(made.cell.field, Route("dopri5"), 1e-3, 1e-4), flows, "TorchScript")
    assert isinstance(exported, Failure)
    assert exported.chain[0][0] == "UnsupportedOperatorError"
