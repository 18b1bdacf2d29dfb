"""GRU-Δt: a gated recurrent unit that is told the time since the last observation, as one more input.

The plainest way to irregular times, and the rival that continuous dynamics must beat; a baseline of Che et al.:
Recurrent neural networks for multivariate time series with missing values (2018), there GRU-simple (section 2.3,
equation 6: value, mask and interval side by side), and of Rubanova, Chen, Duvenaud: Latent ODEs (2019), there RNN Δt.
"""

from __future__ import annotations

from odestream.models.baselines.gru import Gru


class GruDt(Gru):
    """h' = GRU([signal, log(1 + elapsed)], h)."""

    knows_time = True
