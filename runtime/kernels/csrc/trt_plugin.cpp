// TensorRT's side of the plugins OdeFlow and HybridMemory: IPluginV3 with its three capabilities, their creators, and the
// functions that a registry looks for in a library. No exception leaves a method of theirs.
#include "trt_plugin.h"

#include <exception>
#include <string>

#if defined(_WIN32)
#define ODESTREAM_PLUGIN_API extern "C" __declspec(dllexport)
#else
#define ODESTREAM_PLUGIN_API extern "C" __attribute__((visibility("default")))
#endif

namespace odestream {
namespace {

using namespace nvinfer1;

constexpr const char* NAMESPACE = "odestream";
constexpr const char* VERSION = "1";

ILoggerFinder* logger_finder = nullptr;

void complain(const std::string& message) {
    ILogger* const logger = logger_finder == nullptr ? nullptr : logger_finder->findLogger();
    if (logger != nullptr) logger->log(ILogger::Severity::kERROR, ("odestream plugin: " + message).c_str());
}

using MakePart = std::unique_ptr<Part> (*)(const Fields&);

struct Kind {
    const char* name;
    MakePart make;
    std::vector<PluginField> fields;
};

const Kind& flow_kind() {
    static const Kind kind{"OdeFlow",
                           flow_part,
                           {{"widths", nullptr, PluginFieldType::kINT32, 3},
                            {"steps", nullptr, PluginFieldType::kINT32, 1},
                            {"method", nullptr, PluginFieldType::kCHAR, 0},
                            {"rtol", nullptr, PluginFieldType::kFLOAT32, 1},
                            {"atol", nullptr, PluginFieldType::kFLOAT32, 1}}};
    return kind;
}

const Kind& memory_kind() {
    static const Kind kind{"HybridMemory",
                           memory_part,
                           {{"widths", nullptr, PluginFieldType::kINT32, 8},
                            {"stores", nullptr, PluginFieldType::kCHAR, 0},
                            {"surprise_gate", nullptr, PluginFieldType::kINT32, 1},
                            {"age_limit", nullptr, PluginFieldType::kFLOAT32, 1},
                            {"scalars", nullptr, PluginFieldType::kFLOAT32, 6},
                            {"sink", nullptr, PluginFieldType::kFLOAT32, 1}}};
    return kind;
}

class GatePlugin : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    GatePlugin(const Kind& kind, const Fields& fields) : kind_(kind), fields_(fields), part_(kind.make(fields_)) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override {
        try {
            return new GatePlugin(kind_, fields_);
        } catch (const std::exception& error) {
            complain(error.what());
            return nullptr;
        }
    }

    const char* getPluginName() const noexcept override { return kind_.name; }
    const char* getPluginVersion() const noexcept override { return VERSION; }
    const char* getPluginNamespace() const noexcept override { return NAMESPACE; }

    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(part_->outputs().size()); }

    int32_t getOutputDataTypes(DataType* types, int32_t count, const DataType*, int32_t) const noexcept override {
        for (int32_t i = 0; i < count; ++i) types[i] = DataType::kFLOAT;
        return 0;
    }

    int32_t getOutputShapes(const DimsExprs* inputs, int32_t count, const DimsExprs*, int32_t, DimsExprs* outputs,
                            int32_t results, IExprBuilder& builder) noexcept override {
        const auto shapes = part_->outputs();
        if (count != part_->inputs() || results != static_cast<int32_t>(shapes.size())) {
            complain(std::string(kind_.name) + " has " + std::to_string(count) + " inputs, expected " +
                     std::to_string(part_->inputs()));
            return -1;
        }
        for (int32_t i = 0; i < results; ++i) {
            outputs[i].nbDims = 1 + static_cast<int32_t>(shapes[i].size());
            outputs[i].d[0] = inputs[0].d[0];
            for (size_t j = 0; j < shapes[i].size(); ++j) outputs[i].d[1 + j] = builder.constant(shapes[i][j]);
        }
        return 0;
    }

    // Linear tensors of floats; the matrices all of one type.
    bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* all, int32_t inputs,
                                   int32_t) noexcept override {
        const PluginTensorDesc& tensor = all[position].desc;
        if (tensor.format != TensorFormat::kLINEAR) return false;
        if (position >= inputs || !part_->is_matrix(position)) return tensor.type == DataType::kFLOAT;
        if (position != part_->matrices()) return tensor.type == all[part_->matrices()].desc.type;
        return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF || tensor.type == DataType::kBF16;
    }

    int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t inputs, const DynamicPluginTensorDesc*,
                            int32_t outputs) noexcept override {
        return inputs == part_->inputs() && outputs == getNbOutputs() ? 0 : -1;
    }

    size_t getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                            int32_t) const noexcept override {
        Device device;
        if (!find_device(device)) return 0;
        return part_->scratch(static_cast<int>(inputs[0].max.d[0]), device) * sizeof(float);
    }

    int32_t onShapeChange(const PluginTensorDesc*, int32_t inputs, const PluginTensorDesc*,
                          int32_t outputs) noexcept override {
        return inputs == part_->inputs() && outputs == getNbOutputs() && find_device(device_) ? 0 : -1;
    }

    int32_t enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*, const void* const* in, void* const* out,
                    void* workspace, cudaStream_t stream) noexcept override {
        const DataType type = inputs[part_->matrices()].type;
        const Precision precision = type == DataType::kHALF   ? Precision::FP16
                                    : type == DataType::kBF16 ? Precision::BF16
                                                              : Precision::FP32;
        const int batch = static_cast<int>(inputs[0].dims.d[0]);
        const cudaError_t status =
            part_->launch(batch, precision, device_, in, out, static_cast<float*>(workspace), stream);
        if (status == cudaSuccess) return 0;
        complain(std::string(kind_.name) + " failed with CUDA error " + std::to_string(static_cast<int>(status)));
        return -1;
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    const PluginFieldCollection* getFieldsToSerialize() noexcept override { return fields_.collection(); }

private:
    static bool find_device(Device& device) {
        int number = 0;
        if (cudaGetDevice(&number) == cudaSuccess && describe(number, device) == cudaSuccess) return true;
        complain("no device can be described");
        return false;
    }

    const Kind& kind_;
    const Fields fields_;
    const std::unique_ptr<Part> part_;
    Device device_{};
};

class GateCreator : public IPluginCreatorV3One {
public:
    explicit GateCreator(const Kind& kind)
        : kind_(kind), names_{static_cast<int32_t>(kind.fields.size()), kind.fields.data()} {}

    const char* getPluginName() const noexcept override { return kind_.name; }
    const char* getPluginVersion() const noexcept override { return VERSION; }
    const char* getPluginNamespace() const noexcept override { return NAMESPACE; }
    const PluginFieldCollection* getFieldNames() noexcept override { return &names_; }

    IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields, TensorRTPhase) noexcept override {
        try {
            return new GatePlugin(kind_, Fields(*fields));
        } catch (const std::exception& error) {
            complain(std::string(kind_.name) + ": " + error.what());
            return nullptr;
        }
    }

private:
    const Kind& kind_;
    const PluginFieldCollection names_;
};

}  // namespace
}  // namespace odestream

ODESTREAM_PLUGIN_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static odestream::GateCreator flow(odestream::flow_kind()), memory(odestream::memory_kind());
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&flow, &memory};
    count = 2;
    return creators;
}

ODESTREAM_PLUGIN_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { odestream::logger_finder = finder; }

ODESTREAM_PLUGIN_API int32_t odestream_plugin_abi() { return ODESTREAM_PLUGIN_ABI; }
