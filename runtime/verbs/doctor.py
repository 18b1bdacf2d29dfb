"""`odestream doctor`: what is installed, what each part needs, what to install on this board.

Nothing that is looked for is imported, so that a broken installation can be examined too.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from odestream.runtime.errors import CompatError
from odestream.runtime.guards import GUARDS
from odestream.runtime.kernels.build import COMMAND
from odestream.runtime.kernels.build_cuda import CUDA_COMMAND
from odestream.runtime.kernels.build_guards import can_build
from odestream.runtime.kernels.cuda_library import find_gpu, load_cuda_library
from odestream.runtime.kernels.library import load_library
from odestream.runtime.verbs.console import machine, print_json, show_table, versions

PACKAGES = (
    *("odestream", "numpy", "msgspec", "safetensors", "typer", "rich"),
    *("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings"),
    *("torch", "torchdiffeq", "onnx", "onnxscript", "matplotlib"),
)
COMPILERS = ("c++", "g++", "clang++", "cmake", "nvcc")


@dataclass(frozen=True)
class Part:
    """One thing that odestream can do, whether it can here, and how to install what it lacks."""

    name: str
    ready: bool
    detail: str
    install: str | None


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")] = False,
) -> None:
    """Show what is installed, what each backend needs, and what to install on this board.

    Exit status 1 where `--backend auto` can run no bundle.
    """
    installed = versions(*PACKAGES)
    board = describe_board()
    parts = [
        onnxruntime_part(installed, board),
        native_part(),
        native_cuda_part(board),
        guards_part(),
        tensorrt_part(installed, board),
        *extra_parts(installed),
    ]
    if as_json:
        print_json(
            {
                "machine": machine(),
                "board": board,
                "packages": installed,
                "compilers": _compilers(),
                "parts": [asdict(p) for p in parts],
            }
        )
    else:
        _show(installed, board, parts)
    if not any(part.ready for part in parts[:2]):
        raise typer.Exit(1)


def describe_board(root: Path = Path("/")) -> dict[str, Any]:
    """What the device tree and the driver say of this machine; None where they say nothing."""
    return {
        "model": _read(root / "proc/device-tree/model"),
        "jetson": _read(root / "etc/nv_tegra_release"),
        "nvidia_driver": _read(root / "proc/driver/nvidia/version"),
        "architecture": machine()["architecture"],
    }


def onnxruntime_part(installed: dict[str, str | None], board: dict[str, Any]) -> Part:
    """Whether ONNX Runtime can run bundles, and on which devices."""
    version = installed["onnxruntime"] or installed["onnxruntime-gpu"]
    providers = _providers()
    if version or providers:
        return Part("backend onnxruntime", True, f"{version or 'of unknown version'}: {', '.join(providers)}", None)
    if board["jetson"]:
        # PyPI has no GPU wheels for aarch64.
        return Part(
            "backend onnxruntime",
            False,
            "not installed",
            "pip install 'odestream[cpu]', or JetPack's onnxruntime-gpu wheel",
        )
    extra = "gpu" if board["nvidia_driver"] and board["architecture"] != "aarch64" else "cpu"
    return Part("backend onnxruntime", False, "not installed", f"pip install 'odestream[{extra}]'")


def native_part() -> Part:
    """Whether our own kernels can run cells on this processor."""
    try:
        library = load_library()
    except CompatError as error:
        return Part("backend native", False, str(error), COMMAND)
    instructions = library.odestream_instruction_set().decode()
    return Part(
        "backend native", True, f"built for {instructions}; auto takes it for odestream's own cells in float32", None
    )


def guards_part() -> Part:
    """Whether the checks around other engines' calls are compiled; numpy's do the same and take longer."""
    if GUARDS.compiled:
        return Part("compiled guards", True, "steps on onnxruntime are checked by them", None)
    detail = "steps on onnxruntime are checked by numpy, some µs slower"
    return Part("compiled guards", False, detail, COMMAND if can_build() else None)


def native_cuda_part(board: dict[str, Any]) -> Part:
    """Whether our own kernels can run cells on a GPU here, for those who ask for them by name."""
    name = "backend native-cuda"
    try:
        library = load_cuda_library()
    except CompatError as error:
        if board["nvidia_driver"] or board["jetson"]:
            return Part(name, False, str(error), CUDA_COMMAND)
        return Part(name, False, "without an NVIDIA driver", f"only where there is a GPU: {CUDA_COMMAND}")
    try:
        gpu = find_gpu(library)
    except CompatError as error:
        return Part(name, False, str(error), None)
    detail = f"{gpu.name}, compute capability {gpu.capability}, driver for CUDA {gpu.driver}; taken by name alone"
    return Part(name, True, detail, None)


def tensorrt_part(installed: dict[str, str | None], board: dict[str, Any]) -> Part:
    """Whether engines can be run here: a package that loads them, CUDA's bindings, a driver."""
    name, packages = "backend tensorrt", ("tensorrt", "tensorrt-rtx-cu13-bindings")
    found = [f"{package} {installed[package]}" for package in packages if installed[package]]
    lacking = [] if found else ["TensorRT and TensorRT-RTX"]
    lacking += [] if installed["cuda-bindings"] else ["cuda-bindings"]
    lacking += [] if board["nvidia_driver"] or board["jetson"] else ["an NVIDIA driver"]
    if not lacking:
        return Part(name, True, f"{', '.join(found)}; engines are built by odestream compile", None)
    remedy = "pip install 'odestream[trt-rtx]' for a PC's GPU"
    if board["jetson"] or board["architecture"] == "aarch64":
        remedy = "JetPack's python3-libnvinfer in a venv with --system-site-packages, and cuda-bindings; see JETSON.md"
    if lacking == ["an NVIDIA driver"]:
        remedy = "NVIDIA's driver; engines for other machines can be built without"
    with_what = f" (there is {', '.join(found)})" if found else ""
    return Part(name, False, f"without {', '.join(lacking)}{with_what}", remedy)


def extra_parts(installed: dict[str, str | None]) -> list[Part]:
    """Whether the extras that verbs need are here."""
    needs = {
        "train, export, verify --run": ("train", ("torch", "torchdiffeq", "onnx", "onnxscript", "matplotlib")),
        "bench --plot": ("bench", ("matplotlib",)),
    }
    return [_extra_part(name, extra, packages, installed) for name, (extra, packages) in needs.items()]


def _extra_part(name: str, extra: str, packages: tuple[str, ...], installed: dict[str, str | None]) -> Part:
    missing = [package for package in packages if installed[package] is None]
    if missing:
        return Part(name, False, f"without {', '.join(missing)}", f"pip install 'odestream[{extra}]'")
    return Part(name, True, ", ".join(f"{package} {installed[package]}" for package in packages), None)


def _providers() -> list[str]:
    """ONNX Runtime's devices, by the libraries that its package holds."""
    spec = find_spec("onnxruntime")
    if spec is None:
        return []
    found = {
        library.stem.removeprefix("libonnxruntime_providers_")
        for folder in spec.submodule_search_locations or ()
        for library in Path(folder, "capi").glob("libonnxruntime_providers_*.so")
    }
    return ["cpu", *sorted(found - {"shared"})]


def _compilers() -> dict[str, str | None]:
    return {name: shutil.which(name) for name in COMPILERS}


def _read(path: Path) -> str | None:
    try:
        text = path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return None
    return text.splitlines()[0] if text else None


def _show(installed: dict[str, str | None], board: dict[str, Any], parts: list[Part]) -> None:
    host = machine()
    rows = [
        (
            "machine",
            f"{host['processor']}, {host['cores']} cores, {host['architecture']}, {host['system']} {host['release']}",
        ),
        ("board", board["model"] or board["jetson"] or "no device tree: not a Jetson or other board"),
        ("NVIDIA driver", board["nvidia_driver"] or "none"),
        ("python", host["python"]),
        *((package, version or "not installed") for package, version in installed.items()),
        *((compiler, path or "not found") for compiler, path in _compilers().items()),
    ]
    show_table("Installed", ("what", "found"), rows)
    show_table(
        "Ready",
        ("part", "ready", "with", "to install"),
        [(p.name, "yes" if p.ready else "no", p.detail, p.install or "") for p in parts],
    )
