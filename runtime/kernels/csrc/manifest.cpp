#include "manifest.h"

#include "strict_json.h"
#include "tableaus.h"

#include <algorithm>

namespace odestream {
namespace {

constexpr int64_t ANY = std::numeric_limits<int64_t>::max(), WIDEST = std::numeric_limits<int32_t>::max();
constexpr double INFINITE = std::numeric_limits<double>::max(), TINIEST = std::numeric_limits<double>::min();

void require(bool good, const std::string& what) {
    if (!good) throw BadJson(what);
}

void support(bool good, const std::string& what) {
    if (!good) throw Refused(what + "; run it with the onnxruntime backend", ODESTREAM_UNSUPPORTED);
}

// Elements of a shape, for shapes that fit 32 bits.
int64_t size_of(const std::vector<int64_t>& shape, const std::string& name) {
    int64_t size = 1;
    for (int64_t n : shape) {
        require(n >= 1 && size <= WIDEST / n, name + " has a shape that is not between 1 and 2^31 values");
        size *= n;
    }
    return size;
}

int index_of(const std::string& text, std::initializer_list<const char*> names, const std::string& path) {
    int index = 0;
    for (const char* name : names) {
        if (text == name) return index;
        ++index;
    }
    throw BadJson(path + " is " + text.substr(0, 64) + ", which is unknown");
}

// A group of the spec in the words of odestream_layout.
std::string read_tensors(const Json& list) {
    std::string text;
    for (const Json& value : list) {
        const Fields tensor(value, "spec", {"name", "shape", "dtype"});
        const std::string name = tensor.text("name");
        const bool token = tensor.text("dtype") == "int64";
        require(token || tensor.text("dtype") == "float32", name + " is neither float32 nor int64");
        text += (token ? name + "(int64)" : name) + ":" +
                std::to_string(size_of(tensor.integers("shape", 1, WIDEST), name)) + " ";
    }
    return text;
}

void read_spec(Manifest& m, const Json& value) {
    const Fields spec(value, "spec", {"inputs", "outputs", "state"});
    m.layout = read_tensors(spec.list("inputs")) + "| " + read_tensors(spec.list("outputs")) + "|";
    for (const Json& item : spec.list("state")) {
        const Fields state(item, "spec.state", {"name", "shape", "initial"});
        Member member{state.text("name"), state.integers("shape", 1, WIDEST), 0, state.floats("initial")};
        member.size = size_of(member.shape, member.name);
        const size_t last = member.shape.empty() ? 1 : static_cast<size_t>(member.shape.back());
        require(member.initial.size() == 1 || member.initial.size() == last,
                "state " + member.name + " has neither one initial value nor one for each place");
        m.layout += " " + member.name + ":" + std::to_string(member.size);
        m.members.push_back(member);
    }
}

void read_config(Manifest& m, const Json& value) {
    const bool cell = value.is_object() && value.contains("task") && value.contains("sizes");
    support(cell, m.name + " is not one of odestream's own cells");
    const Fields config(value, "config"), sizes(config.at("sizes"), "config.sizes");
    odestream_config& c = m.config;
    const auto size = [&](const char* key) { return static_cast<int32_t>(sizes.integer(key, 0, WIDEST)); };
    c.task = index_of(config.text("task"), {"forecast", "classify", "tokens"}, "config.task");
    c.channels = static_cast<int32_t>(config.integer("channels", 0, WIDEST));
    c.outputs = static_cast<int32_t>(config.integer("outputs", 0, WIDEST));
    c.hidden = size("hidden"), c.field = size("field"), c.content = size("content"), c.head = size("head");
    c.gate = size("gate"), c.window = size("window"), c.slots = size("slots"), c.heads = size("heads");
    c.keys = size("keys"), c.values = size("values");
    const Json& stores = config.list("stores");
    require(!stores.empty() && stores.size() <= ODESTREAM_MAX_STORES, "config.stores are not one to three");
    for (const Json& store : stores) {
        require(store.is_string(), "config.stores holds something else than names");
        c.store[c.stores++] =
            index_of(store.get<std::string>(), {"working", "longterm", "episodic"}, "config.stores");
    }
    c.surprise_gate = config.flag("surprise_gate");
    c.episodic_sink = config.has("episodic_sink") && config.flag("episodic_sink");
    c.age_limit = static_cast<float>(config.number("age_limit", 0, std::numeric_limits<float>::max()));
    m.scale = config.floats("scale"), m.centre = config.floats("centre"), m.averages = config.floats("averages");
    m.frequencies = config.floats("frequencies");
    const size_t channels = static_cast<size_t>(c.channels);
    require(m.scale.size() == channels && m.centre.size() == channels, "config does not scale and centre each channel");
    c.averages = static_cast<int32_t>(m.averages.size()), c.frequencies = static_cast<int32_t>(m.frequencies.size());
    c.scale = m.scale.data(), c.centre = m.centre.data(), c.average = m.averages.data();
    c.frequency = m.frequencies.data();
}

// Most ticks in one call of `steps` solver steps: the stability bound, and the periods that a float32 angle may cross.
uint64_t limit_of(const Ticks& time, int steps, double stiffness, double bound, bool phased) {
    constexpr double LARGEST_FLOAT32 = 3.4e38, MAX_PERIODS = 1000, PI = 3.14159265358979323846, ROUNDING = 1 + 1e-12;
    double longest = LARGEST_FLOAT32, fastest = 0;
    if (stiffness > 0) longest = std::min(longest, steps * bound / stiffness);
    for (double frequency : time.frequencies) fastest = phased ? std::max(fastest, frequency) : 0;
    if (fastest > 0) longest = std::min(longest, MAX_PERIODS * 2 * PI / fastest);
    const double ticks = longest * time.per_model_unit * ROUNDING;
    return ticks < 18446744073709551616.0 ? static_cast<uint64_t>(ticks) : UINT64_MAX;
}

const Method& method_of(const std::string& name) {
    for (const Method& method : METHODS) {
        if (name == method.name) return method;
    }
    throw BadJson("solver.method is " + name.substr(0, 64) + ", which is unknown");
}

void read_solver(Manifest& m, const Json& value) {
    support(!value.is_null(), m.name + " has no solver");
    const Fields solver(value, "solver",
                        {"method", "buckets", "default_bucket", "rtol", "atol", "error_estimate", "stiffness",
                         "max_calls", "error_ratios", "safety_factor", "calibration"});
    const Method& method = method_of(solver.text("method"));
    odestream_config& c = m.config;
    c.rtol = static_cast<float>(solver.number("rtol", TINIEST, INFINITE));
    c.atol = static_cast<float>(solver.number("atol", TINIEST, INFINITE));
    c.stages = method.stages, c.fsal = method.fsal, c.estimates = method.error != nullptr;
    c.a = method.a, c.b = method.b, c.c = method.c, c.error = method.error;
    const bool estimates = solver.flag("error_estimate");
    require(!estimates || method.error != nullptr, "solver.error_estimate is true, but the method has none");
    const std::vector<int64_t> buckets = solver.integers("buckets", 1, WIDEST);
    require(!buckets.empty(), "solver.buckets is empty");
    const std::vector<double> ratios =
        solver.has("error_ratios") ? solver.numbers("error_ratios", TINIEST, INFINITE) : std::vector<double>{};
    require(ratios.empty() || ratios.size() == buckets.size(), "solver.error_ratios are not one for each bucket");
    const int64_t by_default = solver.integer("default_bucket", 1, WIDEST);
    const double stiffness = solver.number("stiffness", 0, INFINITE);
    for (size_t i = 0; i < buckets.size(); ++i) {
        require(i == 0 || buckets[i] > buckets[i - 1], "solver.buckets do not increase");
        m.labels.push_back(std::to_string(buckets[i]));
        if (!estimates && buckets[i] != by_default) continue;  // nothing could choose among several
        const int steps = static_cast<int>(buckets[i]);
        m.buckets.push_back(steps);
        m.ratios.push_back(ratios.empty() ? 1.0 : ratios[i]);
        m.limits.push_back(limit_of(m.time, steps, stiffness, method.bound, c.frequencies > 0));
    }
    require(std::find(buckets.begin(), buckets.end(), by_default) != buckets.end(),
            "solver.default_bucket is not among solver.buckets");
    odestream_solving& s = m.solving;
    s.ticks_per_unit = m.time.per_model_unit, s.origin = m.time.origin, s.frequency = m.time.frequencies.data();
    s.buckets = static_cast<int32_t>(std::min(m.buckets.size(), static_cast<size_t>(WIDEST)));
    s.bucket = m.buckets.data(), s.limit = m.limits.data(), s.ratio = m.ratios.data();
    s.factor = solver.has("safety_factor") ? solver.number("safety_factor", TINIEST, INFINITE) : 1.0;
    s.order = estimates ? method.order : 0;
    s.max_calls = static_cast<int32_t>(
        solver.has("max_calls") ? std::min(solver.integer("max_calls", 1, ANY), WIDEST) : 1024);
    s.default_bucket = static_cast<int32_t>(by_default);
}

void read_weights(Manifest& m, const Json& list) {
    for (const Json& value : list) {
        const Fields entry(value, "weights", {"name", "dtype", "shape", "offset", "length"});
        const std::string name = entry.text("name");
        const std::vector<int64_t> shape = entry.integers("shape", 0, WIDEST);
        const uint64_t offset = entry.count("offset"), length = entry.count("length");
        require(offset <= m.weights_size && length <= m.weights_size - offset,
                "weight " + name + " lies outside the weights file");
        if (entry.text("dtype") != "float32") continue;
        const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
        const int64_t size = empty ? 0 : size_of(shape, "weight " + name);
        require(length == static_cast<uint64_t>(size) * sizeof(float), "weight " + name + " is not as long as its shape");
        const int64_t rows = shape.empty() ? 1 : shape[0];
        m.weights.push_back({name, rows, rows == 0 ? 0 : size / rows, offset, length});
    }
}

void read_weights_file(Manifest& m, const Json& files) {
    require(files.is_object() && files.contains("weights.safetensors"), "files does not list weights.safetensors");
    const Fields file(files["weights.safetensors"], "files", {"sha256", "size"});
    m.weights_sha256 = file.text("sha256");
    m.weights_size = file.count("size");
}

void read_all(Manifest& m, const std::string& text) {
    const Json value = parse_strictly(text);
    require(value.is_object() && value.contains("schema"), "schema is missing");
    const Json& schema = value["schema"];
    require(schema.is_number_integer() && schema == 1, "schema version " + schema.dump().substr(0, 32) +
                                                           ", this odestream reads 1");
    const Fields top(value, "",
                     {"schema", "name", "identity", "dtype", "spec", "task", "time", "solver", "default_graph", "graphs",
                      "gate_names", "weights", "parity", "config", "metrics", "provenance", "files"});
    m.name = top.text("name"), m.identity = top.text("identity");
    support(top.text("dtype") == "fp32", m.name + " is " + top.text("dtype") + ", the library runs fp32");
    m.time = read_ticks(top.at("time"));
    read_config(m, top.at("config"));
    read_spec(m, top.at("spec"));
    require(m.config.frequencies == 0 || m.time.frequencies.size() == m.frequencies.size(),
            "time.frequencies are not as many as config.frequencies");
    read_solver(m, top.at("solver"));
    support(m.buckets.size() <= ODESTREAM_MAX_BUCKETS, m.name + " has more than 64 buckets");
    read_weights_file(m, top.at("files"));
    read_weights(m, top.list("weights"));
}

}  // namespace

bool operator==(const Ticks& a, const Ticks& b) {
    return a.kind == b.kind && a.unit == b.unit && a.per_column_unit == b.per_column_unit &&
           a.has_length == b.has_length && (!a.has_length || a.seconds == b.seconds) &&
           a.per_model_unit == b.per_model_unit && a.origin == b.origin && a.frequencies == b.frequencies;
}

Ticks read_ticks(const Json& value) {
    const Fields time(value, "time",
                      {"kind", "unit", "ticks_per_column_unit", "tick_seconds", "ticks_per_model_unit", "origin",
                       "frequencies"});
    Ticks ticks;
    if (time.has("kind")) ticks.kind = time.text("kind");
    index_of(ticks.kind, {"number", "iso"}, "time.kind");
    if (time.has("unit")) ticks.unit = time.text("unit");
    if (time.has("ticks_per_column_unit")) ticks.per_column_unit = time.integer("ticks_per_column_unit", 1, ANY);
    ticks.has_length = !time.has("tick_seconds") || !time.at("tick_seconds").is_null();
    if (ticks.has_length && time.has("tick_seconds")) ticks.seconds = time.number("tick_seconds", TINIEST, INFINITE);
    if (time.has("ticks_per_model_unit")) ticks.per_model_unit = time.number("ticks_per_model_unit", 1e-9, INFINITE);
    if (time.has("origin")) ticks.origin = time.integer("origin", INT64_MIN, INT64_MAX);
    if (time.has("frequencies")) ticks.frequencies = time.numbers("frequencies", 0, 1e12);
    return ticks;
}

Json write_ticks(const Ticks& ticks) {
    Json time;
    time["kind"] = ticks.kind, time["unit"] = ticks.unit, time["ticks_per_column_unit"] = ticks.per_column_unit;
    time["tick_seconds"] = ticks.has_length ? Json(ticks.seconds) : Json(nullptr);
    time["ticks_per_model_unit"] = ticks.per_model_unit, time["origin"] = ticks.origin;
    time["frequencies"] = ticks.frequencies;
    return time;
}

std::unique_ptr<Manifest> read_manifest(const std::string& text, const std::string& where) {
    auto manifest = std::make_unique<Manifest>();
    try {
        read_all(*manifest, text);
    } catch (const BadJson& error) {
        throw Refused(where + ": " + error.what() + "; export the bundle again", ODESTREAM_BAD_BUNDLE);
    }
    return manifest;
}

void fill_initial(Manifest& manifest) {
    for (const Member& member : manifest.members) {
        const size_t size = static_cast<size_t>(member.size), repeat = member.initial.size();
        for (size_t i = 0; i < size; ++i) manifest.initial.push_back(member.initial[i % repeat]);
    }
    manifest.solving.initial = manifest.initial.data();
}

}  // namespace odestream
