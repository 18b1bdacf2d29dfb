"""What stands in the exported files, read with onnx and compared with the torch module."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import ExternalDataInfo

from odestream.models.config import Task
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import WEIGHTS_NAME
from odestream.runtime.contract.tableau import tableau
from tests.export.conftest import BUCKETS, CONFIGS, Exported

TASKS = list(CONFIGS)


def _models(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    return {label: onnx.load_from_string(bundle.graph(label)) for label in bundle.manifest.graphs}


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _body(model: onnx.ModelProto, name: str) -> onnx.FunctionProto:
    return next(function for function in model.functions if function.name == name)


@pytest.mark.parametrize("task", TASKS)
def test_every_graph_passes_the_checker_beside_its_weights(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    assert set(bundle.manifest.graphs) == {str(bucket) for bucket in BUCKETS}
    for file in bundle.manifest.graphs.values():
        onnx.checker.check_model(str(bundle.path / file), full_check=True)


@pytest.mark.parametrize("task", TASKS)
def test_old_engines_can_read_it(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    for model in _models(bundle).values():
        assert model.ir_version <= 10
        assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "odestream": 1}
        assert all({e.domain: e.version for e in f.opset_import} == {"": 18} for f in model.functions)
        used = {node.op_type for node in _nodes(model)}
        assert used
        assert not {name for name in used if name in ("If", "Loop", "Scan") or name.startswith("Scatter")}


def test_flow_and_memory_are_one_node_each_with_what_a_plugin_needs(exported: Exported) -> None:
    cell, bundle = exported("forecast")
    for label, model in _models(bundle).items():
        calls = {node.op_type: node for node in model.graph.node if node.domain == "odestream"}
        assert Counter(n.op_type for n in model.graph.node if n.domain) == {"OdeFlow": 1, "HybridMemory": 1}
        attributes = {
            name: {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for name, node in calls.items()
        }
        for found in attributes.values():
            assert (found["plugin_namespace"], found["plugin_version"]) == (b"odestream", b"1")
        flow = attributes["OdeFlow"]
        assert (flow["method"], flow["steps"]) == (b"bosh32", int(label))
        assert (flow["rtol"], flow["atol"]) == (pytest.approx(1e-3), pytest.approx(1e-4))
        assert attributes["HybridMemory"]["heads"] == cell.config.sizes.heads


def test_the_flow_takes_its_weights_as_inputs_after_the_state(exported: Exported) -> None:
    _, bundle = exported("forecast")
    model = _models(bundle)["4"]
    node = next(n for n in model.graph.node if n.op_type == "OdeFlow")
    body = _body(model, "OdeFlow")
    weights = ["decay", "hidden", "drive", "bias", "output", "time", "frequencies"]
    assert list(body.input) == ["h", "u", "phase", "dt", *weights]
    assert list(node.input) == ["state_in_h", "state_in_u", "phase", "dt", *(f"field.{name}" for name in weights)]
    assert set(node.input[4:]) <= {initializer.name for initializer in model.graph.initializer}


@pytest.mark.parametrize("task", TASKS)
def test_node_names_are_unique_over_graph_and_bodies(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    for model in _models(bundle).values():
        counts = Counter(node.name for node in _nodes(model))
        assert counts.total() > 100
        assert counts.most_common(1)[0][1] == 1


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_computed_twice(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    for model in _models(bundle).values():
        for part in (model.graph, *model.functions):
            written = Counter(
                (node.op_type, *node.input, *(a.SerializeToString(deterministic=True) for a in node.attribute))
                for node in part.node
                if node.op_type != "Identity"  # gives one value a second name
            )
            assert written.total() > 50
            assert written.most_common(1)[0][1] == 1


def test_only_the_flow_differs_between_buckets(exported: Exported) -> None:
    _, bundle = exported("forecast")
    rest = set()
    for model in _models(bundle).values():
        del model.metadata_props[:]
        model.functions.remove(_body(model, "OdeFlow"))
        flow = next(n for n in model.graph.node if n.op_type == "OdeFlow")
        del flow.attribute[:]
        rest.add(model.SerializeToString(deterministic=True))
    assert len(rest) == 1


def test_the_flow_evaluates_its_field_as_often_as_the_tableau_says(exported: Exported) -> None:
    cell, bundle = exported("forecast")
    for label, model in _models(bundle).items():
        evaluations = sum(node.op_type == "Tanh" for node in _body(model, "OdeFlow").node)
        assert evaluations == tableau(cell.config.method).evaluations(int(label))


def test_sines_of_all_stages_are_taken_at_once(exported: Exported) -> None:
    _, bundle = exported("forecast")
    counts = Counter(node.op_type for node in _body(_models(bundle)["16"], "OdeFlow").node)
    assert (counts["Sin"], counts["Cos"]) == (1, 1)


@pytest.mark.parametrize("task", TASKS)
def test_every_initializer_of_every_bucket_lies_in_the_one_weights_file(task: Task, exported: Exported) -> None:
    _, bundle = exported(task)
    entries = {entry.name: entry for entry in bundle.manifest.weights}
    places = set()
    for model in _models(bundle).values():
        assert {initializer.name for initializer in model.graph.initializer} == set(entries)
        for initializer in model.graph.initializer:
            info, entry = ExternalDataInfo(initializer), entries[initializer.name]
            assert (info.location, info.offset, info.length) == (WEIGHTS_NAME, entry.offset, entry.length)
            assert not initializer.raw_data
            places.add((initializer.name, info.offset))
    assert len(places) == len(entries)


@pytest.mark.parametrize("task", TASKS)
def test_the_weights_file_holds_the_cells_own_bytes_and_all_of_them(task: Task, exported: Exported) -> None:
    cell, bundle = exported(task)
    data = bundle.files[WEIGHTS_NAME]
    stored = {e.name: data[e.offset : e.offset + e.length] for e in bundle.manifest.weights}
    with torch.no_grad():
        folded = {"field.decay": cell.weights().field.decay, "memory.decay_rate": cell.weights().memory.decay_rate}
    own = {
        bytes(p.detach().numpy().tobytes())
        for n, p in cell.named_parameters()
        if not n.endswith(("log_decay", "log_decay_rate"))
    }
    assert own <= set(stored.values())
    for name, tensor in folded.items():
        assert stored[name] == tensor.numpy().tobytes()
    np.testing.assert_array_equal(bundle.weights["update.weight"], cell.update.weight.detach().numpy())


def test_each_graph_says_what_it_is(exported: Exported) -> None:
    _, bundle = exported("forecast")
    for label, model in _models(bundle).items():
        found = {entry.key: entry.value for entry in model.metadata_props}
        assert {"description", "author", "date", "version", "license"} <= set(found)
        assert found["odestream.bucket"] == label
        assert [member["name"] for member in json.loads(found["odestream.state"])][:2] == ["h", "u"]
        assert json.loads(found["odestream.solver"])["method"] == "bosh32"
        assert json.loads(found["odestream.parity"])["h"] < 1e-5
        assert len(found["odestream.source_sha256"]) == 64
