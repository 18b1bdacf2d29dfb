"""Several streams and a class for each: handwritten digits, read row by row.

Each of scikit-learn's 1,797 digits (8 × 8 pixels, UCI's optical recognition test set) is a stream of eight rows at
irregular times, one value in ten missing. The five commands are run as a user would type them; the test part is a fifth
of the digits, none of whose rows were seen in training.

    pip install 'odestream[bench]' && python benchmarks/digits.py

Writes results/digits.json and a section of RESULTS.md.
"""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from results import circumstances_text, markdown_table, publish

FOLDER = Path(__file__).parents[1] / "runs" / "digits"
MISSING, TEST, SEED, MINUTES = 0.1, 0.2, 0, 1.5
GAPS = (1, 1, 2, 3)


def main() -> None:
    """Write the table, run the commands, publish what came out."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pixels, labels = labelled_digits()
    write_digits(FOLDER / "digits.csv", pixels, labels)
    _commands()
    metrics = json.loads((FOLDER / "run" / "metrics.json").read_text(encoding="utf-8"))
    manifest = json.loads((FOLDER / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    parity = max(row["error"] for row in manifest["parity"] if row["tensor"] != "err")
    result = {"test": metrics["test"], "parity": parity, "logistic_regression": _whole_image(pixels, labels)}
    publish("digits", result, _report(result))


def labelled_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels [N, 8, 8] with NaN where a value is missing, and labels [N]."""
    data = load_digits()
    holes = np.random.default_rng(SEED).random(data.images.shape) < MISSING
    return np.where(holes, np.nan, data.images), data.target


def write_digits(path: Path, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    """The digits as a table, a stream each, at irregular times."""
    gaps = np.random.default_rng(SEED).choice(GAPS, pixels.shape[:2])
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "time", *(f"pixel{i}" for i in range(8)), "digit"])
        for n, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            for time, row in zip(np.cumsum(gaps[n]), image, strict=True):
                cells = ["" if np.isnan(value) else int(value) for value in row]
                writer.writerow([f"image{n}", time, *cells, f"digit {label}"])


def _commands() -> None:
    table, run, bundle = FOLDER / "digits.csv", FOLDER / "run", FOLDER / "bundle"
    columns = "--time time --time-unit step --stream image --task classify --targets digit"
    for line in (
        f"train {table} {columns} --minutes {MINUTES} --seed {SEED} --out {run} --force",
        f"export {run} --out {bundle} --force",
        f"verify {bundle} --run {run}",
        f"run {bundle} --input {table} --output {FOLDER / 'predictions.csv'} --force",
        f"bench {bundle} --seconds 1 --json {FOLDER / 'bench.json'} --force",
    ):
        print(f"$ odestream {line}", flush=True)
        subprocess.run(["odestream", *line.split()], check=True)  # noqa: S607 (the command under test)


def _whole_image(pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Accuracy of logistic regression that sees the whole image at once, holes filled with the pixel's mean."""
    flat = pixels.reshape(len(pixels), -1)
    order = np.random.default_rng(SEED).permutation(len(flat))
    test, train = np.split(order, [int(TEST * len(flat))])
    mean, deviation = np.nanmean(flat[train], axis=0), np.nanstd(flat[train], axis=0) + 1e-6
    scaled = (np.where(np.isnan(flat), mean, flat) - mean) / deviation
    return float(LogisticRegression(max_iter=2000).fit(scaled[train], labels[train]).score(scaled[test], labels[test]))


def _report(result: dict[str, Any]) -> str:
    test = result["test"]
    rows = [
        ["odestream, after every row", f"{test['accuracy']:.3f}"],
        ["odestream, after the last row", f"{test['accuracy_at_stream_end']:.3f}"],
        ["the most frequent digit", f"{test['rivals']['majority_accuracy_at_stream_end']:.3f}"],
        ["logistic regression on the whole image", f"{result['logistic_regression']:.3f}"],
    ]
    return "\n\n".join(
        (
            f"Share of rows or streams labelled right, {test['streams']} test streams, one seed, {MINUTES} minutes of "
            "training. Logistic regression has the whole image at once and a random fifth of its own as test part.",
            markdown_table(["", "accuracy"], rows),
            f"Parity with torch, chained and in single calls: {result['parity']:.1e} of a tensor's scale at most. "
            + circumstances_text(),
        )
    )


if __name__ == "__main__":
    main()
