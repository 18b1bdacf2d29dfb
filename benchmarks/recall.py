"""Does the memory remember beyond the gap that it was trained at, and does it take the latest value?

Eight key/value events among noise of the same input space, nothing that marks them, noise before them too, then
questions after a gap. A full nano cell (flow, surprise, hidden state, three memories) is trained at gaps up to 64 noise
rows, exported, and asked on the deployed runtime at gaps up to 1,000,000 with 300 noise rows before the events, every
key rewritten and 2 % of the noise rows near-misses. Each memory also answers alone, and so does the hidden state;
easier conditions stand beside it. Falsified where the full cell's median over seeds is below 0.99 at a gap of 10,000
or below 0.95 at 1,000,000, where one seed is below 0.9 there, or where the window answers as well beyond its 16 rows.

With --reassign: does the forget gate forget? The full cell trained with and without it, every key rewritten, no
near-misses. Falsified where without it the latest value is told as well or better.

    python benchmarks/recall.py [--full]              five seeds, an hour on one core
    python benchmarks/recall.py --reassign [--full]   three seeds, a quarter of an hour
    python benchmarks/recall.py [--reassign] --quick  a minute or two: checks the script; its figures mean nothing

Writes results/recall.json, figures/recall.png and a section of RESULTS.md, or those of `forgetting`; with --quick into
runs/ only. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse

import torch

import recall_beyond
import recall_forgetting
from claim import RUNS
from recall_figure import draw
from results import FIGURES, publish, write_json
from sweep import Sweep

CLAIMS = {"recall": recall_beyond, "forgetting": recall_forgetting}


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _options()
    torch.set_num_threads(1)
    name, tier = "forgetting" if options.reassign else "recall", "quick" if options.quick else "full"
    claim, sweep = CLAIMS[name], Sweep(RUNS / name / f"points_{tier}.json")
    result = claim.measure(claim.PLANS[tier], sweep)
    print(claim.report(result))
    if options.quick:
        write_json(RUNS / name / f"{name}.json", result)
    else:
        publish(name, result, claim.report(result))
    draw(claim.curves(result), (RUNS / name if options.quick else FIGURES) / f"{name}.png")
    sweep.finish()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--full", action="store_true", help="measure and publish, which is the default")
    tier.add_argument("--quick", action="store_true", help="check that the script works; its figures mean nothing")
    parser.add_argument("--reassign", action="store_true", help="forgetting: with and without the forget gate")
    return parser.parse_args()


if __name__ == "__main__":
    main()
