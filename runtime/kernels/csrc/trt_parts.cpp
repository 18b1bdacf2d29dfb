// From a plugin's fields to the cell that the kernels read, and from its tensors to their calls.
#include "layout.h"
#include "tableaus.h"
#include "trt_plugin.h"

#include <cstring>
#include <stdexcept>

namespace odestream {
namespace {

using nvinfer1::PluginFieldType;

size_t bytes_of(PluginFieldType type) {
    switch (type) {
        case PluginFieldType::kINT32: return sizeof(int32_t);
        case PluginFieldType::kFLOAT32: return sizeof(float);
        default: return 1;
    }
}

void require(bool good, const std::string& what) {
    if (!good) throw std::invalid_argument(what);
}

// A matrix as an input holds it: [panels, columns, LANES].
Matrix matrix(const void* data, const void* bias, int rows, int columns) {
    return {data, static_cast<const float*>(bias), rows, columns, padded(rows) / LANES};
}

Tableau tableau(const std::string& name) {
    for (const Method& method : METHODS) {
        if (name != method.name) continue;
        Tableau table{};
        table.stages = method.stages, table.fsal = method.fsal != 0, table.estimates = method.error != nullptr;
        for (int i = 0; i < method.stages; ++i) {
            for (int j = 0; j < i; ++j) table.a[i][j] = static_cast<float>(method.a[i * method.stages + j]);
            table.b[i] = static_cast<float>(method.b[i]);
            table.c[i] = method.c[i];
            table.error[i] = table.estimates ? static_cast<float>(method.error[i]) : 0.0f;
        }
        return table;
    }
    throw std::invalid_argument("method is unknown: " + name);
}

// h, u, phase?, dt, decay, hidden, drive, bias, output, time?, frequencies? -> h', err
class FlowPart : public Part {
public:
    explicit FlowPart(const Fields& fields) : steps_(fields.ints("steps", 1)[0]) {
        const std::vector<int> widths = fields.ints("widths", 3);
        for (int width : widths) require(width >= 0 && width <= 1 << 16, "widths are out of range");
        require(widths[0] > 0 && widths[1] > 0 && steps_ > 0, "widths and steps must be above 0");
        Sizes& z = cell_.size;
        z.hidden = widths[0], z.field = widths[1], z.frequencies = widths[2];
        cell_.member = {};
        cell_.member.u = z.hidden, cell_.member.total = 2 * z.hidden;
        cell_.method = tableau(fields.text("method"));
        cell_.rtol = fields.floats("rtol", 1)[0], cell_.atol = fields.floats("atol", 1)[0];
        cell_.place = places_of(z, cell_.part, cell_.method.stages);
    }

    int inputs() const override { return timed() ? 11 : 8; }
    bool is_matrix(int i) const override { return i == first() + 1 || i == first() + 2 || i == first() + 4 || i == first() + 5; }
    int matrices() const override { return first() + 1; }
    std::vector<std::vector<int>> outputs() const override { return {{cell_.size.hidden}, {1}}; }

    size_t scratch(int batch, const Device& device) const override { return flow_scratch(cell_, batch, device); }

    cudaError_t launch(int batch, Precision precision, const Device& device, const void* const* in, void* const* out,
                       float* scratch, cudaStream_t stream) const override {
        const auto floats = [&](int i) { return static_cast<const float*>(in[i]); };
        const int d = cell_.size.hidden, f = cell_.size.field, w = first();
        Cell cell = cell_;
        cell.decay = floats(w);
        cell.hidden = matrix(in[w + 1], nullptr, f, d);
        cell.drive = matrix(in[w + 2], in[w + 3], f, d);
        cell.output = matrix(in[w + 4], nullptr, d, f);
        if (timed()) {
            cell.time = matrix(in[w + 5], nullptr, f, 2 * cell.size.frequencies);
            cell.frequencies = floats(w + 6);
        }
        const FlowCall call{floats(0), floats(1), timed() ? floats(2) : nullptr, floats(w - 1),
                            static_cast<float*>(out[0]), static_cast<float*>(out[1]), scratch, batch};
        return launch_flow(cell, call, steps_, precision, device, stream);
    }

private:
    bool timed() const { return cell_.size.frequencies > 0; }
    int first() const { return timed() ? 4 : 3; }  // of the weights

    Cell cell_{};
    int steps_;
};

// features, h, observed, surprise, dt, memories…, features' matrix and bias, state's matrix, gate_inner and its bias,
// gate_outer and its bias -> reads, memories…, gates
class MemoryPart : public Part {
public:
    explicit MemoryPart(const Fields& fields) {
        Sizes& z = cell_.size;
        const std::vector<int> widths = fields.ints("widths", 8);
        for (int width : widths) require(width >= 0 && width <= 1 << 16, "widths are out of range");
        z.hidden = widths[0], z.features = widths[1], z.gate = widths[2], z.window = widths[3], z.slots = widths[4];
        z.heads = widths[5], z.keys = widths[6], z.values = widths[7];
        read_stores(fields.text("stores"));
        z.gates = 2 * z.stores + 2;
        z.surprise_gate = fields.ints("surprise_gate", 1)[0] != 0;
        cell_.age_limit = fields.floats("age_limit", 1)[0];
        const std::vector<float> scalars = fields.floats("scalars", 6);
        for (int i = 0; i < 2; ++i) cell_.sharpness[i] = scalars[i], cell_.surprise[i] = scalars[4 + i];
        cell_.age_slope = scalars[2], cell_.decay_rate = scalars[3];
        z.episodic_sink = fields.has("sink");
        if (z.episodic_sink) cell_.sink = fields.floats("sink", 1)[0];
        cell_.part = said_of(z);
        cell_.place = places_of(z, cell_.part, 1);
    }

    int inputs() const override { return 5 + memories() + 7; }
    bool is_matrix(int i) const override {
        const int w = 5 + memories();
        return i == w || i == w + 2 || i == w + 3 || i == w + 5;
    }
    int matrices() const override { return 5 + memories(); }

    std::vector<std::vector<int>> outputs() const override {
        std::vector<std::vector<int>> shapes{{cell_.size.reads}};
        shapes.insert(shapes.end(), shapes_.begin(), shapes_.end());
        shapes.push_back({cell_.size.gates});
        return shapes;
    }

    size_t scratch(int batch, const Device& device) const override { return memory_scratch(cell_, batch, device); }

    cudaError_t launch(int batch, Precision precision, const Device& device, const void* const* in, void* const* out,
                       float* scratch, cudaStream_t stream) const override {
        const auto floats = [&](int i) { return static_cast<const float*>(in[i]); };
        const Sizes& z = cell_.size;
        const int w = 5 + memories(), queries = cell_.part.slot_query;
        Cell cell = cell_;
        cell.features = matrix(in[w], in[w + 1], cell_.part.total, z.features);
        cell.state = matrix(in[w + 2], nullptr, cell_.part.total - queries, z.hidden);
        cell.gate_inner = matrix(in[w + 3], in[w + 4], z.gate, 2 * z.features);
        cell.gate_outer = matrix(in[w + 5], in[w + 6], 1 + z.stores, z.gate);
        MemoryCall call{floats(0), floats(1), floats(2), floats(3), floats(4), {}, static_cast<float*>(out[0]),
                        static_cast<float*>(out[1 + memories()]), {}, scratch, batch};
        for (int i = 0; i < memories(); ++i) call.old[i] = floats(5 + i), call.fresh[i] = static_cast<float*>(out[1 + i]);
        return launch_memory(cell, call, precision, device, stream);
    }

private:
    int memories() const { return static_cast<int>(shapes_.size()); }

    // Stores in the order of the configuration, and where their members stand in a state that holds nothing else.
    void read_stores(const std::string& text) {
        Sizes& z = cell_.size;
        Members& m = cell_.member;
        m = {ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, 0};
        const auto add = [&](int& place, std::vector<int> shape) {
            place = m.total;
            int size = 1;
            for (int length : shape) size *= length;
            m.total += size;
            shapes_.push_back(std::move(shape));
        };
        for (size_t begin = 0; begin < text.size();) {
            const size_t end = text.find(',', begin) == std::string::npos ? text.size() : text.find(',', begin);
            const std::string name = text.substr(begin, end - begin);
            begin = end + 1;
            require(z.stores < MAX_STORES, "stores are too many");
            if (name == "longterm") {
                z.store[z.stores++] = LONGTERM, z.reads += z.heads * z.values;
                add(m.m, {z.heads, z.keys, z.values});
                continue;
            }
            require(name == "working" || name == "episodic", "a store is unknown: " + name);
            const bool window = name == "working";
            const int n = window ? z.window : z.slots;
            z.store[z.stores++] = window ? WORKING : EPISODIC, z.reads += z.values;
            add(window ? m.wk : m.ek, {n, z.keys});
            add(window ? m.wv : m.ev, {n, z.values});
            add(window ? m.ws : m.es, {n});
            add(window ? m.wa : m.ea, {n});
        }
        require(z.stores > 0, "stores are none");
    }

    Cell cell_{};
    std::vector<std::vector<int>> shapes_;  // of the memories
};

}  // namespace

Fields::Fields(const nvinfer1::PluginFieldCollection& given) {
    for (int32_t i = 0; i < given.nbFields; ++i) {
        const nvinfer1::PluginField& field = given.fields[i];
        const char* data = static_cast<const char*>(field.data);
        const size_t size = data == nullptr ? 0 : static_cast<size_t>(field.length) * bytes_of(field.type);
        kept_.push_back({field.name, field.type, {data, data + size}, field.length});
    }
    point();
}

Fields::Fields(const Fields& other) : kept_(other.kept_) { point(); }

void Fields::point() {
    fields_.clear();
    for (const Kept& kept : kept_) fields_.emplace_back(kept.name.c_str(), kept.bytes.data(), kept.type, kept.length);
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

bool Fields::has(const char* name) const {
    for (const Kept& kept : kept_) {
        if (kept.name == name) return true;
    }
    return false;
}

const Fields::Kept& Fields::find(const char* name, PluginFieldType type, size_t count) const {
    for (const Kept& kept : kept_) {
        if (kept.name != name) continue;
        require(kept.type == type, std::string(name) + " is of another type");
        require(count == 0 || kept.bytes.size() == count * bytes_of(type), std::string(name) + " is of another length");
        return kept;
    }
    throw std::invalid_argument(std::string(name) + " is missing");
}

std::vector<int> Fields::ints(const char* name, size_t count) const {
    const Kept& kept = find(name, PluginFieldType::kINT32, count);
    std::vector<int> values(count);
    std::memcpy(values.data(), kept.bytes.data(), kept.bytes.size());
    return values;
}

std::vector<float> Fields::floats(const char* name, size_t count) const {
    const Kept& kept = find(name, PluginFieldType::kFLOAT32, count);
    std::vector<float> values(count);
    std::memcpy(values.data(), kept.bytes.data(), kept.bytes.size());
    return values;
}

std::string Fields::text(const char* name) const {
    const Kept& kept = find(name, PluginFieldType::kCHAR, 0);
    const std::string all(kept.bytes.begin(), kept.bytes.end());
    return all.substr(0, all.find('\0'));  // parsers count the end of a text or do not
}

std::unique_ptr<Part> flow_part(const Fields& fields) { return std::make_unique<FlowPart>(fields); }

std::unique_ptr<Part> memory_part(const Fields& fields) { return std::make_unique<MemoryPart>(fields); }

}  // namespace odestream
