// In place of manifest.cpp and snapshot.cpp, where nlohmann/json was not found when the library was built: everything
// but bundles and snapshots works, and these are refused.
#include "stream.h"

namespace odestream {
namespace {

[[noreturn]] void refuse() {
    throw Refused(
        "this library was built without JSON; install nlohmann-json (PyPI) or nlohmann-json3-dev (Debian) and build it "
        "again (Python: python -m odestream.runtime.kernels.build --force)",
        ODESTREAM_UNSUPPORTED);
}

}  // namespace

std::unique_ptr<Manifest> read_manifest(const std::string&, const std::string&) { refuse(); }
void fill_initial(Manifest&) { refuse(); }
std::string write_snapshot(const Stream&) { refuse(); }
void read_snapshot(Stream&, const void*, size_t) { refuse(); }

}  // namespace odestream
