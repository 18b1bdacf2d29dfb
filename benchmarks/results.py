"""What every benchmark leaves behind: JSON with its circumstances, and its section of RESULTS.md."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
FIGURES = HERE / "figures"
PACKAGES = ("numpy", "torch", "onnx", "onnxruntime", "odestream")


def publish(name: str, result: dict[str, Any], text: str) -> None:
    """Write `results/NAME.json` and fill the section NAME of RESULTS.md with Markdown `text`."""
    write_json(HERE / "results" / f"{name}.json", result)
    RESULTS.write_text(fill_section(RESULTS.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a result together with the circumstances under which it was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**result, "circumstances": circumstances()}, indent=1) + "\n", encoding="utf-8")


def fill_section(document: str, name: str, text: str) -> str:
    """The document with what stands between its markers `<!-- NAME -->` and `<!-- /NAME -->` replaced by `text`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"RESULTS.md: expected one section {begin} … {end}; write the two markers where it belongs")
    return pattern.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", document)


@cache
def circumstances() -> dict[str, Any]:
    """Hardware, versions and commit, as they were when first asked for: what is edited meanwhile does not run."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "commit": _commit(),
    }


def circumstances_text(found: Mapping[str, Any] | None = None) -> str:
    """The same in one sentence; or those that another run found."""
    c = found or circumstances()
    versions = ", ".join(f"{package} {version}" for package, version in c["versions"].items())
    machine = f"{c['processor']}, {c['cores']} cores, OMP_NUM_THREADS={c['threads']}"
    return f"{machine}; Python {c['python']}, {versions}; commit {c['commit']}."


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers, set to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str:
    """Short hash, with `+` where the checkout differs from it; `unknown` outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],  # noqa: S607 (the user's own git)
            cwd=HERE,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
