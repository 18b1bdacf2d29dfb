// Snapshots of one stream, in the format of `odestream.runtime.snapshot`:
//
//     "odestream-snapshot-1\n", sha256 of what follows, safetensors
//
// with the state's members as [1, *shape], and JSON in the metadata.
#include "sha256.h"
#include "stream.h"
#include "strict_json.h"

#include <algorithm>
#include <map>

namespace odestream {
namespace {

constexpr char MAGIC[] = "odestream-snapshot-1\n";
constexpr size_t MAGIC_SIZE = sizeof MAGIC - 1, DIGEST_SIZE = sizeof(Digest), LENGTH_SIZE = 8;

[[noreturn]] void refuse(const std::string& what) { throw Refused("snapshot: " + what, ODESTREAM_BAD_SNAPSHOT); }

const Manifest& manifest_of(const odestream_model& model) {
    if (model.manifest == nullptr) {
        throw Refused("the model was not opened from a bundle, so a snapshot could not say whose it is; use odestream_open",
                      ODESTREAM_BAD_CALL);
    }
    return *model.manifest;
}

// Members by name, as they stand in a safetensors file, with their place in the state.
std::map<std::string, std::pair<const Member*, size_t>> places_of(const Manifest& manifest) {
    std::map<std::string, std::pair<const Member*, size_t>> places;
    size_t begin = 0;
    for (const Member& member : manifest.members) {
        places[member.name] = {&member, begin};
        begin += static_cast<size_t>(member.size);
    }
    return places;
}

std::vector<int64_t> one_row(const Member& member) {
    std::vector<int64_t> shape{1};
    shape.insert(shape.end(), member.shape.begin(), member.shape.end());
    return shape;
}

// Counts by the label of every graph; a stream may run in fewer buckets.
Json counts_of(const Manifest& manifest, const Stream& stream, const uint64_t* counts) {
    Json named = Json::object();
    for (const std::string& label : manifest.labels) named[label] = 0;
    for (int i = 0; i < stream.buckets(); ++i) named[std::to_string(stream.bucket(i))] = counts[i];
    return named;
}

std::string describe(const Manifest& manifest, const Stream& stream) {
    const odestream_progress& p = stream.progress();
    Json record;
    record["name"] = "";
    record["last_tick"] = p.begun != 0 ? Json(p.tick) : Json(nullptr);
    record["steps"] = p.steps, record["flagged"] = p.flagged, record["split"] = p.split;
    record["buckets"] = counts_of(manifest, stream, p.accepted);
    record["rerun"] = p.rerun;
    record["rejected"] = counts_of(manifest, stream, p.rejected);
    record["previous"] = nullptr;
    if (p.previous_gap > 0) {
        record["previous"] = {{"gap", p.previous_gap}, {"steps", p.previous_steps}, {"err", p.previous_err}};
    }
    Json info;
    info["schema"] = 1, info["identity"] = manifest.identity, info["name"] = manifest.name;
    info["time"] = write_ticks(manifest.time);
    info["streams"] = Json::array({record});
    return info.dump();
}

std::string encode(const Stream& stream) {
    const Manifest& manifest = manifest_of(stream.model());
    Json header;
    header["__metadata__"]["odestream"] = describe(manifest, stream);
    std::string data;
    for (const auto& item : places_of(manifest)) {
        const auto [member, begin] = item.second;
        const size_t at = data.size(), bytes = static_cast<size_t>(member->size) * sizeof(float);
        data.append(reinterpret_cast<const char*>(stream.state() + begin), bytes);
        header[item.first] = {{"dtype", "F32"}, {"shape", one_row(*member)}, {"data_offsets", {at, at + bytes}}};
    }
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');
    std::string body;
    for (size_t i = 0; i < LENGTH_SIZE; ++i) body += static_cast<char>(text.size() >> (8 * i) & 0xff);
    body += text + data;
    const Digest digest = Sha256::of(body.data(), body.size());
    return MAGIC + std::string(digest.begin(), digest.end()) + body;
}

struct Decoded {
    std::vector<float> state;
    odestream_progress progress{};
};

// The body, once magic and digest are right.
std::string open_snapshot(const char* data, size_t size) {
    if (size < MAGIC_SIZE || std::memcmp(data, MAGIC, MAGIC_SIZE) != 0) {
        refuse("not a snapshot of version 1; use one that this odestream wrote");
    }
    const size_t begin = MAGIC_SIZE + DIGEST_SIZE;
    const bool whole = size >= begin;
    const Digest digest = whole ? Sha256::of(data + begin, size - begin) : Digest{};
    if (!whole || std::memcmp(digest.data(), data + MAGIC_SIZE, DIGEST_SIZE) != 0) {
        refuse("damaged or cut off, its sha256 differs; use an earlier snapshot");
    }
    return std::string(data + begin, size - begin);
}

void read_tensor(const Manifest& manifest, const std::string& name, const Json& value, const std::string& data,
                 std::vector<float>& state) {
    const auto places = places_of(manifest);
    const auto found = places.find(name);
    if (found == places.end()) throw BadJson("it has the state member " + name.substr(0, 64) + ", which the model lacks");
    const auto [member, begin] = found->second;
    const Fields tensor(value, name, {"dtype", "shape", "data_offsets"});
    const std::vector<int64_t> offsets = tensor.integers("data_offsets", 0, INT64_MAX);
    const int64_t bytes = member->size * static_cast<int64_t>(sizeof(float));
    if (tensor.text("dtype") != "F32" || tensor.integers("shape", 0, INT64_MAX) != one_row(*member)) {
        throw BadJson("state " + name + " is not float32 of the model's shape");
    }
    if (offsets.size() != 2 || offsets[0] > static_cast<int64_t>(data.size()) - bytes || offsets[1] != offsets[0] + bytes) {
        throw BadJson("state " + name + " does not lie in the file");
    }
    std::memcpy(&state[begin], &data[static_cast<size_t>(offsets[0])], static_cast<size_t>(bytes));
    for (size_t i = begin; i < begin + static_cast<size_t>(member->size); ++i) {
        if (!std::isfinite(state[i])) throw BadJson("state " + name + " is not finite");
    }
}

void read_counts(const Manifest& manifest, const Json& value, const char* name, uint64_t* counts) {
    if (!value.is_object()) throw BadJson(std::string(name) + " is not an object");
    for (const auto& item : value.items()) {
        if (!item.value().is_number_unsigned()) throw BadJson(std::string(name) + " holds something else than counts");
        for (size_t i = 0; i < manifest.buckets.size(); ++i) {
            if (item.key() == std::to_string(manifest.buckets[i])) counts[i] = item.value().get<uint64_t>();
        }
    }
}

odestream_progress read_record(const Manifest& manifest, const Json& value) {
    if (value.contains("held")) refuse("its stream fills in held values, which this library does not; restore it in Python");
    const Fields record(value, "streams",
                        {"name", "last_tick", "steps", "flagged", "split", "buckets", "rerun", "rejected", "previous"});
    record.text("name");
    odestream_progress p{};
    p.begun = !record.at("last_tick").is_null();
    if (p.begun != 0) p.tick = record.integer("last_tick", INT64_MIN, INT64_MAX);
    p.steps = record.count("steps"), p.flagged = record.count("flagged"), p.split = record.count("split");
    if (record.has("rerun")) p.rerun = record.count("rerun");
    read_counts(manifest, record.at("buckets"), "buckets", p.accepted);
    if (record.has("rejected")) read_counts(manifest, record.at("rejected"), "rejected", p.rejected);
    if (record.has("previous") && !record.at("previous").is_null()) {
        const Fields previous(record.at("previous"), "previous", {"gap", "steps", "err"});
        p.previous_gap = previous.count("gap"), p.previous_steps = previous.count("steps");
        p.previous_err = previous.number("err", 0, std::numeric_limits<double>::max());
        if (p.previous_gap == 0 || p.previous_steps == 0) throw BadJson("previous has no gap or no steps");
    }
    return p;
}

// The identity and clock of the model that made it, and its only stream.
odestream_progress read_info(const Manifest& manifest, const std::string& text) {
    const Json value = parse_strictly(text);
    const Fields info(value, "", {"schema", "identity", "name", "time", "streams"});
    if (info.integer("schema", 0, INT64_MAX) != 1) refuse("another schema than 1; use one that this odestream wrote");
    info.text("name");
    if (info.text("identity") != manifest.identity) {
        refuse("made by model " + info.text("identity").substr(0, 12) + ", this bundle is " +
               manifest.identity.substr(0, 12) + " (" + manifest.name + "); restore it with the bundle that made it");
    }
    if (!(read_ticks(info.at("time")) == manifest.time)) {
        refuse("its ticks are not the bundle's; restore it with the bundle that made it");
    }
    const Json& streams = info.list("streams");
    if (streams.size() != 1) refuse("it holds " + std::to_string(streams.size()) + " streams; save each by itself");
    return read_record(manifest, streams[0]);
}

Decoded decode(const Manifest& manifest, const std::string& body) {
    if (body.size() < LENGTH_SIZE) throw BadJson("it has no header");
    uint64_t length = 0;
    for (size_t i = 0; i < LENGTH_SIZE; ++i) length |= uint64_t{static_cast<unsigned char>(body[i])} << (8 * i);
    if (length > body.size() - LENGTH_SIZE) throw BadJson("its header is cut off");
    const Json header = parse_strictly(body.substr(LENGTH_SIZE, length));
    const std::string data = body.substr(LENGTH_SIZE + length);
    if (!header.is_object() || !header.contains("__metadata__")) throw BadJson("it has no metadata");
    Decoded decoded;
    decoded.progress = read_info(manifest, Fields(header["__metadata__"], "metadata", {"odestream"}).text("odestream"));
    decoded.state.resize(manifest.initial.size());
    if (header.size() != manifest.members.size() + 1 || data.size() != decoded.state.size() * sizeof(float)) {
        throw BadJson("its state members are not the model's");
    }
    for (const auto& item : header.items()) {
        if (item.key() != "__metadata__") read_tensor(manifest, item.key(), item.value(), data, decoded.state);
    }
    return decoded;
}

}  // namespace

std::string write_snapshot(const Stream& stream) { return encode(stream); }

void read_snapshot(Stream& stream, const void* data, size_t size) {
    const Manifest& manifest = manifest_of(stream.model());
    const std::string body = open_snapshot(static_cast<const char*>(data), size);
    try {
        const Decoded decoded = decode(manifest, body);
        stream.load(decoded.state.data(), decoded.progress);
    } catch (const BadJson& error) {
        refuse(std::string(error.what()) + "; use another snapshot");
    }
}

}  // namespace odestream
