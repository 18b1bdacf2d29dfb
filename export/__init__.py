"""From a torch step to a verified bundle of ONNX graphs that share one file of weights."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odestream.export.bundle import export_bundle
    from odestream.export.verify import verify_against_run, verify_bundle

__all__ = ["export_bundle", "verify_against_run", "verify_bundle"]

_HOMES = {
    "export_bundle": "odestream.export.bundle",
    "verify_against_run": "odestream.export.verify",
    "verify_bundle": "odestream.export.verify",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch and onnx take two seconds, which `odestream export --help` need not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
