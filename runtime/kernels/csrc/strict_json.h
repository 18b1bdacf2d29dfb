// JSON read strictly: no key twice, no more than a few levels or some thousand keys, every value of the type and range
// that is asked for.
#pragma once

#include "load.h"

#include <nlohmann/json.hpp>

#include <cmath>
#include <initializer_list>
#include <limits>
#include <set>
#include <string>
#include <vector>

namespace odestream {

using Json = nlohmann::ordered_json;

// What is wrong with the text or a value; whoever reads a file says which, and what to do.
struct BadJson : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline Json parse_strictly(const std::string& text) {
    constexpr int DEEPEST = 32;
    constexpr size_t MOST_KEYS = 4096;  // of one object; each is looked for among those before it
    std::vector<std::set<std::string>> keys;
    const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
        if (depth > DEEPEST) throw BadJson("it is nested too deeply");
        if (event == Json::parse_event_t::object_start) keys.emplace_back();
        if (event == Json::parse_event_t::object_end) keys.pop_back();
        if (event == Json::parse_event_t::key) {
            if (!keys.back().insert(value.get<std::string>()).second) throw BadJson("a key stands twice");
            if (keys.back().size() > MOST_KEYS) throw BadJson("an object has too many keys");
        }
        return true;
    };
    try {
        return Json::parse(text, check);
    } catch (const Json::parse_error& error) {
        throw BadJson("it is no JSON from byte " + std::to_string(error.byte) + " on");
    } catch (const Json::exception&) {
        throw BadJson("a number in it is too large");
    }
}

// The fields of an object called `name`; with `known`, it has no others.
class Fields {
public:
    Fields(const Json& object, std::string name) : object_(object), name_(std::move(name)) {
        if (!object.is_object()) throw BadJson((name_.empty() ? "the whole" : name_) + " is not an object");
    }

    Fields(const Json& object, const std::string& name, std::initializer_list<const char*> known)
        : Fields(object, name) {
        for (const auto& item : object.items()) {
            bool found = false;
            for (const char* key : known) found = found || item.key() == key;
            if (!found) throw BadJson("the field " + path(item.key().substr(0, 64).c_str()) + " is unknown");
        }
    }

    bool has(const char* key) const { return object_.contains(key); }

    const Json& at(const char* key) const {
        const auto found = object_.find(key);
        if (found == object_.end()) throw BadJson(path(key) + " is missing");
        return *found;
    }

    std::string text(const char* key) const {
        if (!at(key).is_string()) throw BadJson(path(key) + " is not a text");
        return at(key).get<std::string>();
    }

    bool flag(const char* key) const {
        if (!at(key).is_boolean()) throw BadJson(path(key) + " is not true or false");
        return at(key).get<bool>();
    }

    int64_t integer(const char* key, int64_t low, int64_t high) const { return integer_of(at(key), path(key), low, high); }

    // From 0 up.
    uint64_t count(const char* key) const {
        if (!at(key).is_number_unsigned()) throw BadJson(path(key) + " is not a whole number from 0");
        return at(key).get<uint64_t>();
    }

    double number(const char* key, double low, double high) const { return number_of(at(key), path(key), low, high); }

    const Json& list(const char* key) const {
        if (!at(key).is_array()) throw BadJson(path(key) + " is not a list");
        return at(key);
    }

    std::vector<int64_t> integers(const char* key, int64_t low, int64_t high) const {
        std::vector<int64_t> values;
        for (const Json& value : list(key)) values.push_back(integer_of(value, path(key), low, high));
        return values;
    }

    std::vector<double> numbers(const char* key, double low, double high) const {
        std::vector<double> values;
        for (const Json& value : list(key)) values.push_back(number_of(value, path(key), low, high));
        return values;
    }

    std::vector<float> floats(const char* key) const {
        constexpr double MOST = std::numeric_limits<float>::max();
        std::vector<float> values;
        for (double value : numbers(key, -MOST, MOST)) values.push_back(static_cast<float>(value));
        return values;
    }

    std::string path(const char* key) const { return name_.empty() ? key : name_ + "." + key; }

private:
    static int64_t integer_of(const Json& value, const std::string& path, int64_t low, int64_t high) {
        const bool large = value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX;
        if (!value.is_number_integer() || large || value.get<int64_t>() < low || value.get<int64_t>() > high) {
            throw BadJson(path + " is not a whole number from " + std::to_string(low) + " to " + std::to_string(high));
        }
        return value.get<int64_t>();
    }

    static double number_of(const Json& value, const std::string& path, double low, double high) {
        if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
            throw BadJson(path + " is not a number in its range");
        }
        return value.get<double>();
    }

    const Json& object_;
    std::string name_;
};

// A file's `time`; every field may be left out.
struct Ticks;
Ticks read_ticks(const Json& value);
Json write_ticks(const Ticks& ticks);

}  // namespace odestream
