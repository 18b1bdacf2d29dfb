// Opens a bundle: reads its manifest and weights, whose hash is checked before a byte of them is used.
#include "handle.h"
#include "sha256.h"

#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace odestream {
namespace {

class Descriptor {
public:
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() {
        if (number_ >= 0) close(number_);
    }
    int number() const { return number_; }

private:
    int number_;
};

std::string reason() { return std::strerror(errno); }

// A file of the bundle, whole: a regular one with one name, of at most `most` bytes (else the status `larger`). Links are
// not followed.
std::string read_file(int directory, const char* name, const std::string& where, uint64_t most, int32_t larger) {
    const Descriptor file(openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (file.number() < 0) {
        const bool link = errno == ELOOP || errno == ENXIO;
        throw Refused(where + ": cannot be read (" + reason() + "); export or copy the bundle again",
                      link ? ODESTREAM_BAD_PATH : ODESTREAM_BAD_BUNDLE);
    }
    struct stat status;
    if (fstat(file.number(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_nlink != 1) {
        throw Refused(where + ": not a file of its own; export or copy the bundle again", ODESTREAM_BAD_PATH);
    }
    if (static_cast<uint64_t>(status.st_size) > most) {
        throw Refused(where + ": " + std::to_string(status.st_size) + " bytes, at most " + std::to_string(most) +
                          " are expected; export or copy the bundle again",
                      larger);
    }
    std::string data(static_cast<size_t>(status.st_size), '\0');
    size_t done = 0;
    while (done < data.size()) {
        const ssize_t got = read(file.number(), &data[done], data.size() - done);
        if (got <= 0) break;
        done += static_cast<size_t>(got);
    }
    data.resize(done);
    return data;
}

std::string read_weights_file(int directory, const Manifest& manifest, const std::string& where) {
    std::string data = read_file(directory, "weights.safetensors", where, manifest.weights_size, ODESTREAM_BAD_HASH);
    if (data.size() != manifest.weights_size) {
        throw Refused(where + ": " + std::to_string(data.size()) + " bytes, the manifest says " +
                          std::to_string(manifest.weights_size) + "; export or copy the bundle again",
                      ODESTREAM_BAD_HASH);
    }
    const std::string found = hexadecimal(Sha256::of(data.data(), data.size()));
    if (found != manifest.weights_sha256) {
        throw Refused(where + ": sha256 is " + found + ", the manifest says " + manifest.weights_sha256.substr(0, 64) +
                          "; export or copy the bundle again",
                      ODESTREAM_BAD_HASH);
    }
    return data;
}

Loaded load_weights(const Manifest& manifest, const std::string& data) {
    std::vector<std::vector<float>> values;  // where floats may stand
    std::vector<odestream_weight> weights;
    for (const WeightPlace& place : manifest.weights) {
        values.emplace_back(place.length / sizeof(float));
        if (place.length > 0) std::memcpy(values.back().data(), data.data() + place.offset, place.length);
        weights.push_back({place.name.c_str(), values.back().data(), place.rows, place.columns});
    }
    return load_cell(manifest.config, weights.data(), weights.size());
}

std::unique_ptr<odestream_model> open_bundle(const char* path) {
    const std::string where = path;
    const Chosen code = choose_step();
    if (code.step == nullptr) {
        throw Refused("this machine has no AVX2 and FMA; run the bundle with the onnxruntime backend",
                      ODESTREAM_UNSUPPORTED);
    }
    const Descriptor directory(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory.number() < 0) {
        throw Refused(where + ": not a bundle directory (" + reason() + "); name one that odestream export made",
                      ODESTREAM_BAD_BUNDLE);
    }
    const std::string named = where + "/manifest.json";
    const std::string text =
        read_file(directory.number(), "manifest.json", named, MAX_MANIFEST_BYTES, ODESTREAM_BAD_BUNDLE);
    auto manifest = read_manifest(text, named);
    const std::string data = read_weights_file(directory.number(), *manifest, where + "/weights.safetensors");
    auto model = std::make_unique<odestream_model>();
    model->code = code;
    try {
        model->loaded = load_weights(*manifest, data);
    } catch (const Refused& error) {
        throw Refused(where + ": " + error.what() + "; run it with the onnxruntime backend", ODESTREAM_UNSUPPORTED);
    }
    const bool tokens = model->loaded.cell.size.task == TOKENS;
    const std::string expected = tokens ? "x(int64)" + model->loaded.layout.substr(1) : model->loaded.layout;
    if (expected != manifest->layout) {
        throw Refused(where + ": the library steps over " + model->loaded.layout + ", the bundle over " +
                          manifest->layout.substr(0, 200) + "; export it again",
                      ODESTREAM_UNSUPPORTED);
    }
    fill_initial(*manifest);
    model->manifest = std::move(manifest);
    return model;
}

}  // namespace
}  // namespace odestream

int32_t odestream_open(const char* path, odestream_model** model) {
    return odestream::guarded(ODESTREAM_BAD_BUNDLE, [&] { *model = odestream::open_bundle(path).release(); });
}
