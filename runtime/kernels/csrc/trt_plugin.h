// The flow and the memory as plugins of TensorRT: what a plugin must know of the one launch that it wraps.
#pragma once

#include "cuda_launch.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

// Changes whenever the inputs or fields of a plugin do; odestream.runtime.backends.plugin_library names it too.
#define ODESTREAM_PLUGIN_ABI 2

namespace odestream {

// The fields that a plugin was made from, kept for the engine that serialises them.
class Fields {
public:
    explicit Fields(const nvinfer1::PluginFieldCollection& given);
    Fields(const Fields& other);
    Fields& operator=(const Fields&) = delete;

    // Throw std::invalid_argument, naming the field, where it is missing, of another type or of another length.
    std::vector<int> ints(const char* name, size_t count) const;
    std::vector<float> floats(const char* name, size_t count) const;
    std::string text(const char* name) const;
    bool has(const char* name) const;

    const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

private:
    struct Kept {
        std::string name;
        nvinfer1::PluginFieldType type;
        std::vector<char> bytes;
        int32_t length;
    };
    const Kept& find(const char* name, nvinfer1::PluginFieldType type, size_t count) const;
    void point();

    std::vector<Kept> kept_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

// One call of the graph. Tensors are [batch, …] floats; matrices are packed as Matrix::data says and may be narrow.
class Part {
public:
    virtual ~Part() = default;
    virtual int inputs() const = 0;
    virtual bool is_matrix(int input) const = 0;
    virtual int matrices() const = 0;  // the first of them
    virtual std::vector<std::vector<int>> outputs() const = 0;  // shapes without the batch
    virtual size_t scratch(int batch, const Device& device) const = 0;  // floats
    virtual cudaError_t launch(int batch, Precision precision, const Device& device, const void* const* in,
                               void* const* out, float* scratch, cudaStream_t stream) const = 0;
};

// Throw std::invalid_argument where the fields do not make one.
std::unique_ptr<Part> flow_part(const Fields& fields);
std::unique_ptr<Part> memory_part(const Fields& fields);

}  // namespace odestream
