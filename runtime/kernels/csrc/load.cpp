#include "load.h"

#include "layout.h"

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <map>
#include <new>
#include <vector>

namespace odestream {
namespace {

constexpr int LARGEST = 1 << 16;  // of any width, far beyond what a step can use; products of two stay in range

struct Weight {
    const float* data;
    int rows, columns;
};

// Part of a packed matrix: `weight` begins at `row` (a multiple of LANES); bias may be null.
struct Piece {
    int row;
    Weight weight;
    const float* bias;
};

class Weights {
public:
    Weights(const odestream_weight* weights, size_t count) {
        for (size_t i = 0; i < count; ++i) named_[weights[i].name] = weights[i];
    }

    Weight get(const std::string& name, int rows, int columns) const {
        const auto found = named_.find(name);
        if (found == named_.end()) throw Refused("weight " + name + " is missing");
        const odestream_weight& weight = found->second;
        if (weight.rows != rows || weight.columns != columns) {
            throw Refused("weight " + name + " is [" + std::to_string(weight.rows) + ", " +
                          std::to_string(weight.columns) + "], expected [" + std::to_string(rows) + ", " +
                          std::to_string(columns) + "]");
        }
        return {weight.data, rows, columns};
    }

    const float* vector(const std::string& name, int length) const { return get(name, length, 1).data; }

private:
    std::map<std::string, odestream_weight> named_;
};

// Hands out parts of one block. Without a block it only counts, so that everything is placed twice by the same code.
class Block {
public:
    explicit Block(float* memory) : memory_(memory) {}

    float* take(size_t floats) {
        float* const place = memory_ == nullptr ? nullptr : memory_ + used_;
        used_ += (floats + LANES - 1) / LANES * LANES;
        return place;
    }

    template <class F>
    const float* fill(int count, F value) {
        float* const to = take(count);
        for (int i = 0; to != nullptr && i < count; ++i) to[i] = value(i);
        return to;
    }

    const float* copy(const float* from, size_t count) {
        float* const to = take(count);
        if (to != nullptr && count > 0) std::memcpy(to, from, count * sizeof(float));
        return to;
    }

    Matrix pack(std::initializer_list<Piece> pieces, int rows, int columns) {
        const int panels = padded(rows) / LANES;
        float* const data = take(static_cast<size_t>(panels) * columns * LANES);
        float* const bias = take(static_cast<size_t>(panels) * LANES);
        if (data != nullptr) {
            for (const Piece& piece : pieces) place(piece, columns, data, bias);
        }
        return {data, bias, rows, columns, panels};
    }

    Matrix pack(Weight weight, const float* bias = nullptr) {
        return pack({{0, weight, bias}}, weight.rows, weight.columns);
    }

    size_t used() const { return used_; }

private:
    static void place(const Piece& piece, int columns, float* data, float* bias) {
        for (int i = 0; i < piece.weight.rows; ++i) {
            const int row = piece.row + i, panel = row / LANES, lane = row % LANES;
            for (int j = 0; j < piece.weight.columns; ++j) {
                const float value = piece.weight.data[static_cast<size_t>(i) * piece.weight.columns + j];
                data[(static_cast<size_t>(panel) * columns + j) * LANES + lane] = value;
            }
            if (piece.bias != nullptr) bias[row] = piece.bias[i];
        }
    }

    float* memory_;
    size_t used_ = 0;
};

void check(bool good, const char* what) {
    if (!good) throw Refused(std::string("the configuration's ") + what);
}

void check_config(const odestream_config& c) {
    for (int width : {c.channels, c.hidden, c.field, c.content, c.head, c.gate, c.window, c.slots, c.heads, c.keys,
                      c.values}) {
        check(width >= 1 && width <= LARGEST, "sizes are not all between 1 and 65536");
    }
    check(c.task >= FORECAST && c.task <= TOKENS, "task is unknown");
    check(c.task != CLASSIFY || (c.outputs >= 1 && c.outputs <= LARGEST), "outputs are not between 1 and 65536");
    check(c.task != TOKENS || (c.channels == 1 && c.averages == 0), "tokens come with channels or running averages");
    check(c.averages >= 0 && c.averages <= 1024 && c.frequencies >= 0 && c.frequencies <= LARGEST,
          "averages or frequencies are too many");
    check(c.stores >= 1 && c.stores <= MAX_STORES, "stores are not one to three");
    for (int i = 0; i < c.stores; ++i) {
        check(c.store[i] >= WORKING && c.store[i] <= EPISODIC, "stores hold an unknown one");
        for (int j = 0; j < i; ++j) check(c.store[i] != c.store[j], "stores name one twice");
    }
    check(c.stages >= 1 && c.stages <= MAX_STAGES, "method has no stage or more than 16");
    check(static_cast<int64_t>(c.channels) * (c.averages + 3) <= LARGEST &&
              static_cast<int64_t>(c.heads) * c.keys * c.values <= 1 << 24 &&
              static_cast<int64_t>(c.slots) * (c.keys + c.values) <= 1 << 26 &&
              static_cast<int64_t>(c.window) * (c.keys + c.values) <= 1 << 26,
          "memories are too large");
}

Sizes sizes_of(const odestream_config& c) {
    Sizes z{};
    z.task = c.task, z.channels = c.channels, z.hidden = c.hidden, z.field = c.field, z.content = c.content;
    z.head = c.head, z.gate = c.gate, z.window = c.window, z.slots = c.slots, z.heads = c.heads, z.keys = c.keys;
    z.values = c.values, z.averages = c.averages, z.frequencies = c.frequencies, z.stores = c.stores;
    z.surprise_gate = c.surprise_gate != 0, z.episodic_sink = c.episodic_sink != 0;
    z.answers = c.task == FORECAST ? 2 * c.channels : c.task == CLASSIFY ? c.outputs : VOCABULARY;
    z.norm_features = c.averages > 0 ? c.channels * (2 + c.averages) : 0;
    z.features = c.task == TOKENS ? c.content : c.averages > 0 ? z.norm_features : 2 * c.channels;
    z.gates = 2 * c.stores + 2;
    for (int i = 0; i < c.stores; ++i) {
        z.store[i] = c.store[i];
        z.reads += c.store[i] == LONGTERM ? c.heads * c.values : c.values;
    }
    return z;
}

struct MemberOf {
    const char* name;
    int* place;
    int size;
};

// Members in the order of the spec.
std::vector<MemberOf> members_of(const Sizes& z, Members& m) {
    std::vector<MemberOf> all{{"h", &m.h, z.hidden}, {"u", &m.u, z.hidden}, {"ua", &m.ua, 1}, {"st", &m.st, 3}};
    if (z.averages > 0) all.push_back({"norm", &m.norm, z.channels * (z.averages + 3)});
    for (int i = 0; i < z.stores; ++i) {
        if (z.store[i] == LONGTERM) {
            all.push_back({"m", &m.m, z.heads * z.keys * z.values});
            continue;
        }
        const bool window = z.store[i] == WORKING;
        const int n = window ? z.window : z.slots;
        all.push_back({window ? "wk" : "ek", window ? &m.wk : &m.ek, n * z.keys});
        all.push_back({window ? "wv" : "ev", window ? &m.wv : &m.ev, n * z.values});
        all.push_back({window ? "ws" : "es", window ? &m.ws : &m.es, n});
        all.push_back({window ? "wa" : "ea", window ? &m.wa : &m.ea, n});
    }
    return all;
}

Tableau tableau_of(const odestream_config& c) {
    Tableau method{};
    method.stages = c.stages;
    method.fsal = c.fsal != 0;
    method.estimates = c.estimates != 0;
    for (int i = 0; i < c.stages; ++i) {
        for (int j = 0; j < i; ++j) method.a[i][j] = static_cast<float>(c.a[i * c.stages + j]);
        method.b[i] = static_cast<float>(c.b[i]);
        method.c[i] = c.c[i];
        method.error[i] = c.estimates != 0 ? static_cast<float>(c.error[i]) : 0.0f;
    }
    return method;
}

void place_field(Cell& cell, const Weights& w, Block& block) {
    const Sizes& z = cell.size;
    cell.decay = block.copy(w.vector("field.decay", z.hidden), z.hidden);
    cell.hidden = block.pack(w.get("field.hidden", z.field, z.hidden));
    cell.drive = block.pack(w.get("field.drive", z.field, z.hidden), w.vector("field.bias", z.field));
    cell.output = block.pack(w.get("field.output", z.hidden, z.field));
    if (z.frequencies > 0) cell.time = block.pack(w.get("field.time", z.field, 2 * z.frequencies));
}

void place_memory(Cell& cell, const Weights& w, Block& block) {
    const Sizes& z = cell.size;
    const Said& part = cell.part;
    const int f = z.features, d = z.hidden, n = z.stores, matrix_keys = z.heads * z.keys, queries = part.slot_query;
    const auto piece = [&](int row, const std::string& name, int rows, int columns, const float* bias = nullptr) {
        return Piece{row, w.get(name, rows, columns), bias};
    };
    const Piece none{0, {nullptr, 0, 0}, nullptr};
    const bool slots = has(z, WORKING) || has(z, EPISODIC), matrix = has(z, LONGTERM);
    const std::string s = "memory.slots.", m = "memory.matrix.", g = "memory.gates.";
    cell.features = block.pack(
        {
            piece(part.content, "encode_content.weight", z.content, f, w.vector("encode_content.bias", z.content)),
            slots ? piece(part.slot_key, s + "key", z.keys, f) : none,
            slots ? piece(part.slot_value, s + "value", z.values, f) : none,
            slots ? piece(part.slot_query, s + "query", z.keys, f) : none,
            matrix ? piece(part.matrix_key, m + "key", matrix_keys, f) : none,
            matrix ? piece(part.matrix_value, m + "value", z.heads * z.values, f) : none,
            matrix ? piece(part.matrix_query, m + "query", matrix_keys, f) : none,
            piece(part.keep, g + "forget", 1, f, w.vector(g + "forget_bias", 1)),
            piece(part.read, g + "read", n, f, w.vector(g + "read_bias", n)),
        },
        part.total, f);
    cell.state = block.pack(
        {
            slots ? piece(0, s + "query_state", z.keys, d) : none,
            matrix ? piece(part.matrix_query - queries, m + "query_state", matrix_keys, d) : none,
            piece(part.read - queries, g + "read_state", n, d),
        },
        part.total - queries, d);
    cell.gate_inner = block.pack(w.get(g + "inner", z.gate, 2 * f), w.vector(g + "inner_bias", z.gate));
    cell.gate_outer = block.pack(w.get(g + "write", 1 + n, z.gate), w.vector(g + "write_bias", 1 + n));
    const float *sharpness = w.vector("memory.sharpness", 2), *surprise = w.vector(g + "surprise", 2);
    const double slope = *w.vector("memory.age_slope", 1);
    for (int i = 0; i < 2; ++i) cell.sharpness[i] = sharpness[i], cell.surprise[i] = surprise[i];
    cell.age_slope = static_cast<float>(slope > 20.0 ? slope : std::log1p(std::exp(slope)));
    cell.decay_rate = *w.vector("memory.decay_rate", 1);
    if (z.episodic_sink) cell.sink = *w.vector("memory.sink", 1);
}

void place_heads(Cell& cell, const Weights& w, Block& block) {
    const Sizes& z = cell.size;
    const bool tokens = z.task == TOKENS;
    const int seen = tokens ? VOCABULARY : z.channels, expected = tokens ? VOCABULARY : 2 * z.channels;
    const int parts = z.hidden + 2 * z.frequencies + z.norm_features, answers = z.hidden + z.reads;
    const auto layer = [&](const std::string& name, int rows, int columns) {
        return block.pack(w.get(name + ".weight", rows, columns), w.vector(name + ".bias", rows));
    };
    cell.expect_inner = layer("heads.expect.inner", z.head, parts);
    cell.expect_outer = layer("heads.expect.outer", expected, z.head);
    cell.residual = block.pack(w.get("encode_residual.weight", z.content, seen));
    cell.encode = layer("encode", z.hidden, z.content + 1);
    cell.update = layer("update", 2 * z.hidden, 2 * z.hidden + z.reads);
    if (tokens) {
        const size_t size = static_cast<size_t>(VOCABULARY) * z.content;
        cell.embedding = block.copy(w.get("embedding.weight", VOCABULARY, z.content).data, size);
    }
    if (z.task == FORECAST) return;
    cell.answer_inner = layer("heads.answer.inner", z.head, answers);
    cell.answer_outer = layer("heads.answer.outer", z.answers, z.head);
    cell.recall = block.pack(w.get("heads.recall.weight", z.answers, z.reads));
}

void place_scaling(Cell& cell, const odestream_config& c, Block& block) {
    cell.scale = block.copy(c.scale, c.channels);
    cell.per_scale = block.fill(c.channels, [&](int i) { return 1.0f / c.scale[i]; });
    cell.centre = block.copy(c.centre, c.channels);
    cell.log_scale2 = block.fill(c.channels, [&](int i) { return 2.0f * static_cast<float>(std::log(c.scale[i])); });
    cell.rates = block.fill(c.averages, [&](int i) { return 1.0f / c.average[i]; });
    cell.frequencies = block.copy(c.frequency, c.frequencies);
}

size_t place_all(Cell& cell, const odestream_config& config, const Weights& weights, float* memory) {
    Block block(memory);
    place_scaling(cell, config, block);
    place_field(cell, weights, block);
    place_memory(cell, weights, block);
    place_heads(cell, weights, block);
    return block.used();
}

std::string layout_of(const Sizes& z, const std::vector<MemberOf>& members) {
    const auto named = [](const char* name, int size) { return std::string(name) + ":" + std::to_string(size) + " "; };
    std::string text = named("x", z.channels) + named("mask", z.channels) + named("dt", 1);
    if (z.frequencies > 0) text += named("phase", 2 * z.frequencies);
    text += "| " + named("y", z.answers) + named("err", 1) + named("gates", z.gates) + "| ";
    for (const MemberOf& member : members) text += named(member.name, member.size);
    text.pop_back();
    return text;
}

}  // namespace

Loaded load_cell(const odestream_config& config, const odestream_weight* weights, size_t count) {
    check_config(config);
    Loaded loaded{};
    Cell& cell = loaded.cell;
    cell.size = sizes_of(config);
    Members& m = cell.member;
    m = {ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, 0};
    const std::vector<MemberOf> members = members_of(cell.size, m);
    for (const MemberOf& member : members) {
        *member.place = m.total;
        m.total += member.size;
    }
    cell.part = said_of(cell.size);
    cell.place = places_of(cell.size, cell.part, config.stages);
    cell.method = tableau_of(config);
    cell.rtol = config.rtol, cell.atol = config.atol, cell.age_limit = config.age_limit;
    const Weights named(weights, count);
    const size_t floats = loaded.floats = place_all(cell, config, named, nullptr);
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, floats * sizeof(float)) != 0) throw std::bad_alloc();
    std::memset(memory, 0, floats * sizeof(float));
    loaded.block.reset(static_cast<float*>(memory));
    place_all(cell, config, named, loaded.block.get());
    loaded.layout = layout_of(cell.size, members);
    return loaded;
}

}  // namespace odestream
