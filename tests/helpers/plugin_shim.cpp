// What TensorRT does with a plugin, through a C interface: creates it from fields, asks for types, shapes and workspace,
// serialises and clones it, and calls it. For tests that have TensorRT's headers and CUDA on a CPU, but neither itself.
#include <NvInferRuntime.h>

#include <vector>

using namespace nvinfer1;

extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace {


IPluginV3OneBuild* build_of(IPluginV3* plugin) {
    return static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime* runtime_of(IPluginV3* plugin) {
    return static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

IPluginCreatorV3One* creator(int which) {
    int32_t count = 0;
    return static_cast<IPluginCreatorV3One*>(getCreators(count)[which]);
}

Dims rows(int64_t batch) {
    Dims dims{};
    dims.nbDims = 1, dims.d[0] = batch;
    return dims;
}

}  // namespace

#define SHIM extern "C" __attribute__((visibility("default")))

SHIM const char* shim_name(int which) { return creator(which)->getPluginName(); }

SHIM IPluginV3* shim_create(int which, const PluginField* fields, int count) {
    const PluginFieldCollection collection{count, fields};
    return creator(which)->createPlugin("made", &collection, TensorRTPhase::kBUILD);
}

SHIM IPluginV3* shim_again(int which, IPluginV3* plugin) {
    const PluginFieldCollection* fields = runtime_of(plugin)->getFieldsToSerialize();
    IPluginV3* const made = creator(which)->createPlugin("loaded", fields, TensorRTPhase::kRUNTIME);
    IPluginV3* const attached = runtime_of(made)->attachToContext(nullptr);
    delete made;
    return attached;
}

SHIM void shim_destroy(IPluginV3* plugin) { delete plugin; }

SHIM int shim_outputs(IPluginV3* plugin) { return build_of(plugin)->getNbOutputs(); }

SHIM int shim_supports(IPluginV3* plugin, int position, const int* types, int inputs, int outputs) {
    std::vector<DynamicPluginTensorDesc> all(inputs + outputs);
    for (int i = 0; i < inputs + outputs; ++i) {
        all[i].desc.type = static_cast<DataType>(types[i]);
        all[i].desc.format = TensorFormat::kLINEAR;
    }
    return build_of(plugin)->supportsFormatCombination(position, all.data(), inputs, outputs);
}

SHIM size_t shim_workspace(IPluginV3* plugin, int batch, int inputs) {
    std::vector<DynamicPluginTensorDesc> all(inputs);
    for (auto& tensor : all) tensor.max = rows(batch);
    return build_of(plugin)->getWorkspaceSize(all.data(), inputs, nullptr, 0);
}

SHIM int shim_call(IPluginV3* plugin, int batch, const int* types, const void* const* in, int inputs, void* const* out,
                   int outputs, void* workspace) {
    std::vector<PluginTensorDesc> given(inputs), results(outputs);
    for (int i = 0; i < inputs; ++i) given[i].type = static_cast<DataType>(types[i]), given[i].dims = rows(batch);
    if (runtime_of(plugin)->onShapeChange(given.data(), inputs, results.data(), outputs) != 0) return -2;
    cudaStream_t stream = nullptr;
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return -3;
    const int status = runtime_of(plugin)->enqueue(given.data(), results.data(), in, out, workspace, stream);
    const bool done = cudaStreamSynchronize(stream) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess;
    return done ? status : -4;
}
