"""Import directions and third-party reach of each layer, read from the sources; sizes that keep files readable."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMON = {"numpy", "msgspec", "safetensors", "typer", "rich"}
THIRD_PARTY = {
    "runtime": COMMON,
    "models": COMMON | {"torch", "torchdiffeq", "matplotlib"},
    "export": COMMON | {"torch", "torchdiffeq", "onnx", "onnxscript", "onnx_ir"},
}
BELOW = {"runtime": {"runtime"}, "models": {"runtime", "models"}, "export": {"runtime", "models", "export"}}
# Inside a function of these files only: an engine, or a plot or counts that nobody may ask for.
LAZY = {
    "runtime/backends/onnxruntime.py": {"onnxruntime"},
    "runtime/metrics.py": {"prometheus_client"},
    "runtime/backends/onnxruntime_cuda.py": {"onnxruntime"},
    "runtime/backends/cuda_device.py": {"cuda"},
    "runtime/verbs/latency_plot.py": {"matplotlib"},
}
LONGEST_FILE = 400


def sources(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names that a file imports, each with whether the import stands at module level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", id(node) not in inside) for alias in node.names)


@pytest.mark.parametrize("layer", list(BELOW))
def test_a_layer_imports_no_layer_above_it(layer: str) -> None:
    assert sources(layer)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(layer)
        for name, _ in imports(path)
        if name.startswith("odestream.") and name.split(".")[1] not in BELOW[layer]
    ]
    assert not wrong


@pytest.mark.parametrize("layer", list(BELOW))
def test_a_layer_reaches_only_its_own_third_parties(layer: str) -> None:
    allowed = THIRD_PARTY[layer] | set(sys.stdlib_module_names) | {"odestream"}
    wrong = []
    for path in sources(layer):
        where = path.relative_to(ROOT).as_posix()
        for name, at_module_level in imports(path):
            top = name.split(".")[0]
            if top not in allowed and (at_module_level or top not in LAZY.get(where, ())):
                wrong.append(f"{where} imports {name}")
    assert not wrong


def test_the_contract_needs_nothing_but_itself_the_errors_and_three_base_packages() -> None:
    allowed = set(sys.stdlib_module_names) | {"numpy", "msgspec", "safetensors"}
    paths = sorted((ROOT / "runtime" / "contract").rglob("*.py"))
    names = [name for path in paths for name, _ in imports(path)]
    own = ("odestream.runtime.contract", "odestream.runtime.errors")
    assert names
    assert [n for n in names if n.split(".")[0] not in allowed and not n.startswith(own)] == []


def test_no_layer_imports_tests_or_benchmarks() -> None:
    names = {name.split(".")[0] for layer in BELOW for path in sources(layer) for name, _ in imports(path)}
    assert names
    assert not names & {"tests", "benchmarks"}


def test_files_stay_short_enough_to_be_one_idea() -> None:
    files = [path for folder in (*BELOW, "benchmarks", "tests") for path in sources(folder)]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}
