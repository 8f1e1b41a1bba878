#include "weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <new>

#include "pages.h"
#include "rows.h"

using namespace phx;

namespace {

// Weights lie one after the other in slabs of large pages, as a step reads each of them once: in small pages it would
// walk a page table entry for every 4 KiB, and the processor's own fetching ahead stops at the end of each page. A slab
// lives as long as any weight in it.
class Slab {
  public:
    // Null when there is no memory. The slab counts this as one more weight.
    static char* allocate(size_t bytes, Slab*& owner) {
        const std::lock_guard<std::mutex> lock(mutex_);
        bytes = round_up(bytes, 64);
        if (open_ == nullptr || open_->pages_.bytes() - open_->used_ < bytes) {
            Slab* fresh = new (std::nothrow) Slab(std::max(bytes, SIZE));
            if (fresh == nullptr || fresh->pages_.get() == nullptr) {
                delete fresh;
                return nullptr;
            }
            if (open_ != nullptr) open_->release();
            open_ = fresh;
            ++open_->owners_;
        }
        owner = open_;
        ++owner->owners_;
        char* result = owner->pages_.get() + owner->used_;
        owner->used_ += bytes;
        return result;
    }
    static void free(Slab* owner) {
        const std::lock_guard<std::mutex> lock(mutex_);
        owner->release();
        if (open_ != nullptr && open_->owners_ == 1) {  // nothing but the place for the next weight
            open_->release();
            open_ = nullptr;
        }
    }

  private:
    static constexpr size_t SIZE = 64 << 20;
    explicit Slab(size_t bytes) : pages_(bytes) {}
    void release() {
        if (--owners_ == 0) delete this;
    }

    static std::mutex mutex_;
    static Slab* open_;  // the one that the next weight goes into
    Pages pages_;
    size_t used_ = 0;
    long owners_ = 0;
};
std::mutex Slab::mutex_;
Slab* Slab::open_ = nullptr;

struct Owned : Weight {
    Slab* slab;
};

template <class T> void pack(Weight& w, const T* source, long rows, long first, long step) {
    constexpr long P = PAIR<T>;
    for (long row = 0; row < rows; ++row) {
        T* panel = reinterpret_cast<T*>(w.data + (first + row / LANES * step) * w.panel_bytes()) + row % LANES * P;
        const T* from = source + row * w.inputs;
        for (long k = 0; k < w.inputs; ++k) panel[k / P * LANES * P + k % P] = from[k];
    }
}

void pack_without_zeros(Weight& w, const bf16* source, long rows, long first, long step) {
    constexpr long P = PAIR<bf16>;
    Lines<bf16> values(w.depth * LANES);
    Weight dense = w;
    dense.kept = 0, dense.data = reinterpret_cast<char*>(values.data());
    for (long begin = 0; begin < rows; begin += LANES) {
        std::fill(values.begin(), values.end(), bf16(0));
        pack<bf16>(dense, source + begin * w.inputs, std::min<long>(LANES, rows - begin), 0, 1);
        uint32_t* bits = reinterpret_cast<uint32_t*>(w.data + (first + begin / LANES * step) * w.panel_bytes());
        bf16* to = reinterpret_cast<bf16*>(bits + w.depth / P);
        for (auto from = values.begin(); from != values.end(); from += P * LANES, ++bits) {
            *bits = store_set(to, &*from);
            to += __builtin_popcount(*bits);
        }
    }
}

// Codes of 8 bits: [inputs / 4][16][4].
void pack_bytes(Weight& w, const uint8_t* from, long panel, long lane) {
    uint8_t* to = reinterpret_cast<uint8_t*>(w.data + panel * w.panel_bytes()) + lane * 4;
    for (long k = 0; k < w.inputs; ++k) to[k / 4 * LANES * 4 + k % 4] = from[k];
}

// Codes of 4 bits: [inputs / 8][16][4] bytes, each with the code of one of the first four inputs in the low half and of
// one of the four after them in the high half.
void pack_halves(Weight& w, const uint8_t* from, long panel, long lane) {
    uint8_t* to = reinterpret_cast<uint8_t*>(w.data + panel * w.panel_bytes()) + lane * 4;
    for (long k = 0; k < w.inputs; ++k) to[k / 8 * LANES * 4 + k % 4] |= uint8_t(from[k] << (k % 8 < 4 ? 0 : 4));
}

// The nearest half of what is not beyond the largest.
f16 to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    const uint32_t sign = bits >> 31 << 15, size = bits & 0x7fffffff;
    if (std::fabs(x) < 0x1p-14f) return f16(sign | uint32_t(std::lrint(std::fabs(x) * 0x1p24f)));
    return f16(sign | (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13);
}

// A group's values in centred codes. Leaves what is lost of them in place of the values.
void round_group(Weight& w, float (&values)[GROUP], long panel, long lane, long group, uint8_t* codes) {
    constexpr float LARGEST_HALF = 65504;
    const int bits = w.format == Format::Int4 ? 4 : 8;
    const float steps = float(centre(bits));  // below zero; one fewer above
    const F32 x[2] = {load(values), load(values + LANES)};
    const float high = largest(max(x[0], x[1])), low = -largest(max(sub(zero(), x[0]), sub(zero(), x[1])));
    const float extreme = high > -low ? high : low;
    const f16 half = to_half(std::clamp(extreme / -steps, -LARGEST_HALF, LARGEST_HALF));
    const float scale = half_to_float(half), inverse = scale != 0 ? 1 / scale : 0;
    for (int i = 0; i < 2; ++i) {
        const I32 code = to_int(max(min(mul(x[i], set1(inverse)), set1(steps - 1)), set1(-steps)));
        store(values + i * LANES, sub(x[i], mul(to_float(code), set1(scale))));
        store_bytes(reinterpret_cast<int8_t*>(codes) + i * LANES, add(code, set1(centre(bits))));
    }
    w.scales[(panel * w.groups() + group) * LANES + lane] = half;
}

}  // namespace

extern "C" {

Weight* phx_weight_new(int format, long outputs, long inputs, long panels, long kept, int with_offsets) {
    Owned w{};
    w.format = static_cast<Format>(format);
    w.outputs = outputs, w.inputs = inputs, w.panels = panels, w.kept = kept;
    w.depth = padded_inputs(w.format, inputs);
    const size_t codes = round_up(panels * w.panel_bytes(), 64);
    const size_t table = w.grouped() ? round_up(panels * w.groups() * LANES * sizeof(f16), 64)
                                     : w.quantised() ? panels * LANES * sizeof(float) : 0;
    // Products look a little ahead of where they are.
    w.data = Slab::allocate(codes + table * (with_offsets ? 2 : 1) + 4096, w.slab);
    if (w.data == nullptr) return nullptr;
    if (w.grouped()) w.scales = reinterpret_cast<f16*>(w.data + codes);
    if (w.format == Format::Channels) w.channels = reinterpret_cast<float*>(w.data + codes);
    if (w.grouped() && with_offsets) w.offsets = reinterpret_cast<f16*>(w.data + codes + table);
    Owned* result = new (std::nothrow) Owned(w);
    if (result == nullptr) Slab::free(w.slab);
    return result;
}

void phx_weight_free(Weight* weight) {
    Owned* owned = static_cast<Owned*>(weight);
    Slab::free(owned->slab);
    delete owned;
}

void phx_weight_pack_f32(Weight* weight, const float* source, long rows, long first, long step) {
    pack<float>(*weight, source, rows, first, step);
}

void phx_weight_pack_bf16(Weight* weight, const uint16_t* source, long rows, long first, long step) {
    if (weight->sparse()) return pack_without_zeros(*weight, source, rows, first, step);
    pack<bf16>(*weight, source, rows, first, step);
}

void phx_weight_pack_codes(Weight* weight, const uint8_t* codes, const uint16_t* scales, const uint16_t* offsets,
                           long rows, long first, long step) {
    Weight& w = *weight;
    const long stored = (w.inputs + GROUP - 1) / GROUP;
    for (long row = 0; row < rows; ++row) {
        const long panel = first + row / LANES * step, lane = row % LANES;
        const uint8_t* from = codes + row * w.inputs;
        if (w.format == Format::Int8) {
            pack_bytes(w, from, panel, lane);
        } else {
            pack_halves(w, from, panel, lane);
        }
        for (long group = 0; group < stored; ++group) {
            const long place = (panel * w.groups() + group) * LANES + lane;
            w.scales[place] = scales[row * stored + group];
            if (w.offsets != nullptr) w.offsets[place] = offsets[row * stored + group];
        }
    }
}

void phx_weight_pack_channels(Weight* weight, const uint8_t* codes, const float* scales, long rows, long first, long step) {
    for (long row = 0; row < rows; ++row) {
        const long panel = first + row / LANES * step, lane = row % LANES;
        pack_bytes(*weight, codes + row * weight->inputs, panel, lane);
        weight->channels[panel * LANES + lane] = scales[row];
    }
}

void phx_weight_round(Weight* weight, const float* source, long rows, long inputs, long first, float* changed, float* kept) {
    Weight& w = *weight;
    const long groups = (inputs + GROUP - 1) / GROUP;
    Lines<uint8_t> codes(w.depth);
    for (long row = 0; row < rows; ++row) {
        const long panel = first + row / LANES, lane = row % LANES;
        const float* from = source + row * inputs;
        for (long group = 0; group < groups; ++group, ++changed, ++kept) {
            const long begin = group * GROUP;
            float values[GROUP] = {}, lost[GROUP];
            std::memcpy(values, from + begin, std::min(GROUP, inputs - begin) * sizeof(float));
            std::memcpy(lost, values, sizeof(lost));
            round_group(w, lost, panel, lane, group, codes.data() + begin);
            if (group + 1 == groups && w.inputs > inputs) round_group(w, lost, panel, lane, groups, codes.data() + begin + GROUP);
            F32 out = zero(), in = zero();
            for (long k = 0; k < GROUP; k += LANES) {
                const F32 off = load(lost + k), made = sub(load(values + k), off);
                out = fma(off, off, out), in = fma(made, made, in);
            }
            *changed = sum(out), *kept = sum(in);
        }
        if (w.format == Format::Int8) {
            pack_bytes(w, codes.data(), panel, lane);
        } else {
            pack_halves(w, codes.data(), panel, lane);
        }
    }
}

}  // extern "C"
