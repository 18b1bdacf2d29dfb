"""Builds one engine of TensorRT or TensorRT-RTX from a bundle's graph; needs neither torch nor a training run.

The parser gets the bytes that were hashed, weights included, and never opens a file. The network is strongly typed:
what is float32 in the graph is float32 in the engine, without TF32. Which of plugin and function runs a call is not
asked for but looked at afterwards, in the network and, where a GPU can load the engine, in the engine itself. For
plugins the functions are taken out of the graph: up to 10.6 a parser prefers them whatever is registered, from 10.15 on
unless a flag and the node's attributes say otherwise, which they do too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from odestream.export.plugin_graph import lower_calls
from odestream.runtime.backends.plugin_library import find_plugin
from odestream.runtime.backends.trt_package import Messages, Package, make_logger
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.engine import FUNCTION, PLUGIN, STATE_MAGNITUDE, PluginRecord
from odestream.runtime.contract.manifest import WEIGHTS_NAME
from odestream.runtime.errors import CompatError, ExportError

DOMAIN = "odestream"
PHASES = 6  # steps of the outermost phase that TensorRT 10 and TensorRT-RTX 1 report

Report = Callable[[str, int], None]
Profile = tuple[int, int, int]


@dataclass(frozen=True)
class Options:
    """How engines are built. architectures: as `sm89`, empty for the GPU that is here. plugin: the library's."""

    architectures: tuple[str, ...]
    profiles: tuple[Profile, ...]
    plugin: PluginRecord | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of everything that is not the default, for the sidecar."""
        chosen = {"version_compatible": self.version_compatible, "hardware_compatible": self.hardware_compatible}
        return ("strongly_typed", "no_tf32", *(name for name, on in chosen.items() if on))


@dataclass(frozen=True)
class Built:
    """An engine's bytes; layers of its network; what runs each call, and what proves it."""

    data: bytes
    layers: int
    calls: dict[str, str]
    proof: str


def build_engine(
    package: Package, bundle: Bundle, label: str, options: Options, cache: bytes | None, report: Report
) -> tuple[Built, bytes | None]:
    """Build the engine of bucket `label`; also the timing cache after it, where `cache` (maybe empty) is given.

    report: called with the phase that runs and how many of PHASES are done. Raises ExportError where the package
    refuses the graph, and where a call runs by another way than asked for; CompatError where it cannot build for these
    architectures.
    """
    return _Build(package, bundle, label, options, report).run(cache)


class _Build:
    def __init__(self, package: Package, bundle: Bundle, label: str, options: Options, report: Report) -> None:
        self.package, self.bundle, self.label, self.options, self.report = package, bundle, label, options, report
        self.trt = package.module
        self.logger, self.messages = make_logger(package)
        self.where = bundle.manifest.graphs[label]

    def run(self, cache: bytes | None) -> tuple[Built, bytes | None]:
        builder = self.trt.Builder(self.logger)
        if self.options.plugin is not None:
            register_plugin(builder.get_plugin_registry(), self.options.plugin, self.messages)
        network, calls = self._network(builder)
        config, timing = self._config(builder, network, cache)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise CompatError(self._failure("cannot build it"))
        data = bytes(plan)
        seen = self._inspected(data)
        self._prove(calls if seen is None else seen)
        proof = "names of the network's layers" if seen is None else "engine inspector"
        kept = None if timing is None else bytes(config.get_timing_cache().serialize())
        return Built(data, int(network.num_layers), calls, proof), kept

    def _network(self, builder: Any) -> tuple[Any, dict[str, str]]:
        typed = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = self.trt.OnnxParser(network, self.logger)
        override = getattr(getattr(self.trt, "OnnxParserFlag", None), "ENABLE_PLUGIN_OVERRIDE", None)
        if self.options.plugin is not None and override is not None:
            parser.set_flag(override)
        model = whole_model(self.bundle, self.label)
        names = [function.name for function in model.functions if function.domain == DOMAIN]
        if self.options.plugin is not None:
            lower_calls(model)
        if not parser.parse(model.SerializeToString()):
            said = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise ExportError(self._failure("cannot parse it", "; ".join(said[:1])))
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        return network, calls_of(names, [(layer.name, _is_plugin(layer)) for layer in layers])

    def _config(self, builder: Any, network: Any, cache: bytes | None) -> tuple[Any, Any]:
        trt, options = self.trt, self.options
        config = builder.create_builder_config()
        if options.architectures:
            config.num_compute_capabilities = len(options.architectures)
            for i, name in enumerate(options.architectures):
                config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), i)
        config.clear_flag(trt.BuilderFlag.TF32)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = _monitor(trt, self.report)
        timing = None
        if cache is not None:
            timing = config.create_timing_cache(cache)
            config.set_timing_cache(timing, ignore_mismatch=False)
        for least, best, most in options.profiles:
            profile = builder.create_optimization_profile()
            for i in range(network.num_inputs):
                tensor = network.get_input(i)
                row = tuple(tensor.shape)[1:]
                profile.set_shape(tensor.name, (least, *row), (best, *row), (most, *row))
            config.add_optimization_profile(profile)
        return config, timing

    def _inspected(self, data: bytes) -> dict[str, str] | None:
        """What runs each call by the engine's own account; None where no GPU can load it here."""
        if self.options.architectures:
            return None
        runtime = self.trt.Runtime(self.logger)
        if self.options.plugin is not None:
            runtime.get_plugin_registry().load_library(find_plugin(self.options.plugin).copy)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise CompatError(self._failure("cannot load what it built"))
        text = engine.create_engine_inspector().get_engine_information(self.trt.LayerInformationFormat.JSON)
        return calls_of(list(self._expected()), inspected_layers(text))

    def _expected(self) -> dict[str, str]:
        model = onnx.load_from_string(self.bundle.graph(self.label))
        way = FUNCTION if self.options.plugin is None else PLUGIN
        return {function.name: way for function in model.functions if function.domain == DOMAIN}

    def _prove(self, calls: Mapping[str, str]) -> None:
        expected = self._expected()
        wrong = [name for name, way in expected.items() if calls.get(name) != way]
        if wrong:
            raise ExportError(
                f"{self.where}: {', '.join(wrong)} ran as {calls.get(wrong[0], 'nothing')}, not as "
                f"{expected[wrong[0]]}; use a plugin library of this odestream, or leave --plugin out"
            )

    def _failure(self, what: str, said: str = "") -> str:
        reason = said or self.messages.take() or "it gave no reason"
        remedy = "choose other --arch or --batch, or report it with the model's configuration"
        return f"{self.where}: {self.package.target} {self.package.version} {what} ({reason[:300]}); {remedy}"


def whole_model(bundle: Bundle, label: str) -> onnx.ModelProto:
    """A bucket's graph with its weights inside, made from the hashed bytes, and one more output: STATE_MAGNITUDE."""
    model = onnx.load_from_string(bundle.graph(label))
    data = bundle.files[WEIGHTS_NAME]
    places = {entry.name: entry for entry in bundle.manifest.weights}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        place = places[tensor.name]
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.raw_data = data[place.offset : place.offset + place.length]
    _add_magnitude(model)
    return model


def _add_magnitude(model: onnx.ModelProto) -> None:
    """Σ|x| over a row's new state: not finite where any of it is not, so that the state need not leave the device."""
    graph, terms = model.graph, list[str]()
    for value in [output for output in graph.output if output.name.startswith("state_out_")]:
        size, axes = f"magnitude/{value.name}", list(range(1, len(value.type.tensor_type.shape.dim)))
        graph.node.append(onnx.helper.make_node("Abs", [value.name], [f"{size}/abs"], name=f"{size}/abs"))
        terms.append(f"{size}/abs")
        if axes:
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), f"{size}/axes"))
            inputs = [f"{size}/abs", f"{size}/axes"]
            graph.node.append(onnx.helper.make_node("ReduceSum", inputs, [size], name=size, keepdims=0))
            terms[-1] = size
    if terms:
        graph.node.append(onnx.helper.make_node("Sum", terms, [STATE_MAGNITUDE], name="magnitude"))
        graph.output.append(onnx.helper.make_tensor_value_info(STATE_MAGNITUDE, onnx.TensorProto.FLOAT, ["B"]))


def calls_of(names: list[str], layers: list[tuple[str, bool]]) -> dict[str, str]:
    """What runs each of the calls `names`, from (name, is a plugin) of all layers.

    A plugin's layer has the call's own name, such as `OdeFlow_0`; a function's nodes have it as a prefix: `OdeFlow/…`.
    """
    found = {}
    for name in names:
        as_plugin = any(plugin and name in layer for layer, plugin in layers)
        as_function = any(f"{name}/" in layer for layer, plugin in layers if not plugin)
        if as_plugin != as_function:
            found[name] = PLUGIN if as_plugin else FUNCTION
    return found


def inspected_layers(text: str) -> list[tuple[str, bool]]:
    """(name, is a plugin) of every layer in the inspector's JSON; names of fused layers list their parts."""
    layers = json.loads(text).get("Layers", [])
    details = [layer if isinstance(layer, dict) else {"Name": layer} for layer in layers]
    return [
        (f"{d.get('Name', '')} {d.get('Metadata', '')}", "plugin" in str(d.get("LayerType", "")).lower())
        for d in details
    ]


def register_plugin(registry: Any, record: PluginRecord, messages: Messages) -> None:
    """Load the plugin library that was hashed into a registry; CompatError where it cannot be loaded."""
    library = find_plugin(record)
    if registry.load_library(library.copy) is None:
        raise CompatError(f"{library.path}: not a plugin library ({messages.take()}); build it again for this TensorRT")


def _is_plugin(layer: Any) -> bool:
    return "PLUGIN" in str(layer.type)


def _monitor(trt: Any, report: Report) -> Any:
    """Tells of the outermost phase alone; the inner ones have thousands of steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outermost = ""

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            del steps
            if parent is None:
                self.outermost = name
                report(name, 0)

        def step_complete(self, name: str, step: int) -> bool:
            if name == self.outermost:
                report(name, min(step + 1, PHASES))
            return True

        def phase_finish(self, name: str) -> None:
            del name

    return Monitor()
