"""TensorRT or TensorRT-RTX, whichever is asked for: their Python interface is the same but for plugins."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from odestream.runtime.errors import CompatError

_MODULES = {"tensorrt": ("tensorrt",), "trt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_ERROR = 1  # severities of TensorRT: 0 internal error, 1 error, 2 warning, 3 information


@dataclass(frozen=True)
class Package:
    """The package of a target. module: its Python module. version: as it names itself, such as 10.3.0."""

    target: str
    module: Any
    version: str

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


def load_package(target: str) -> Package:
    """The package of `target`; CompatError says how to install it."""
    failures = []
    for name in _MODULES[target]:
        try:
            module = import_module(name)
        except (ImportError, OSError) as cause:  # a wheel without its libraries fails as either
            failures.append(str(cause))
            continue
        return Package(target, module, module.__version__)
    raise CompatError(
        f"{target} is not installed ({failures[-1]}); run: pip install 'odestream[{target}]'"
        + (", or use the packages of JetPack in a venv with --system-site-packages" if target == "tensorrt" else "")
    )


@dataclass
class Messages:
    """What the package said since the last `take`: its errors, which its calls do not return."""

    errors: list[str] = field(default_factory=list)

    def take(self) -> str:
        """The first error, which the later ones follow from; empty where there was none."""
        first = self.errors[0] if self.errors else ""
        self.errors.clear()
        return first


def make_logger(package: Package) -> tuple[Any, Messages]:
    """A logger for the package, and where it puts errors; nothing is printed."""
    messages = Messages()

    class Logger(package.module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            package.module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= _ERROR:
                messages.errors.append(" ".join(message.split()))

    return Logger(), messages
