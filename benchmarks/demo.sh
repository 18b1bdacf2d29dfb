#!/usr/bin/env bash
# The main job as a user would type it: from a table to predictions that stream from an exported bundle.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

demo=runs/demo
data=benchmarks/data/co2_weekly.csv

type_and_run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

rm -rf "$demo"
mkdir -p "$demo"
type_and_run odestream train "$data" --time time --inputs co2_ppm --period 365.25 --out "$demo/run"
type_and_run odestream export "$demo/run" --out "$demo/bundle"
type_and_run odestream verify "$demo/bundle" --run "$demo/run"
type_and_run odestream run "$demo/bundle" --input "$data" --output "$demo/predictions.csv"
type_and_run odestream bench "$demo/bundle" --rate 100 --seconds 5 --json "$demo/bench.json" --plot "$demo/latency.png"
printf '\n'
python benchmarks/demo_report.py "$demo"
