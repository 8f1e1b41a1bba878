// Work on single rows of activations, in float32: norms, rotation, quantisation, embedding.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "amx.h"
#include "weight.h"

namespace phx {

// Root-mean-square norm (Zhang & Sennrich, 2019). Rows are padded with zeros to 16; `size` is the true width.
inline void normalise(const float* x, const float* weight, float eps, long size, float* out) {
    F32 squares = zero();
    long i = 0;
    for (; i + LANES <= size; i += LANES) {
        const F32 v = load(x + i);
        squares = fma(v, v, squares);
    }
    float total = sum(squares);
    for (; i < size; ++i) total += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(total / float(size) + eps);
    for (i = 0; i + LANES <= size; i += LANES) store(out + i, mul(mul(load(x + i), set1(scale)), load(weight + i)));
    for (; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

// Rotary embedding (Su et al., "RoFormer", 2021) of one head in the half-split layout; cos and sin [size / 2].
inline void rotate(float* x, const float* cos, const float* sin, long size) {
    const long half = size / 2;
    long i = 0;
    for (; i + LANES <= half; i += LANES) {
        const F32 a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
        store(x + i, sub(mul(a, c), mul(b, s)));
        store(x + half + i, fma(b, c, mul(a, s)));
    }
    for (; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = a * cos[i] - b * sin[i];
        x[half + i] = b * cos[i] + a * sin[i];
    }
}

// A batch's rows, cut into tiles that a product keeps in registers. The first ones may be one row higher than the others.
class Tiles {
  public:
    Tiles(long rows, long most) : count((rows + most - 1) / most), lower_(rows / count), higher_(rows % count),
                                  by_lower_((uint64_t(1) << 32) / lower_ + 1), by_higher_((uint64_t(1) << 32) / (lower_ + 1) + 1) {}
    long begin(long tile) const { return tile * lower_ + std::min(tile, higher_); }
    long height(long tile) const { return lower_ + (tile < higher_); }
    long of(long row) const {  // without a division
        const bool high = row < higher_ * (lower_ + 1);
        return long(uint64_t(high ? row : row - higher_) * (high ? by_higher_ : by_lower_) >> 32);
    }
    const long count;

  private:
    const long lower_, higher_;  // the height of most tiles, and how many are one row higher
    const uint64_t by_lower_, by_higher_;
};

// Whether a batch of so many rows goes to matrix registers.
template <class T> bool lined(long rows) { return !std::is_same_v<T, float> && rows >= amx::FEWEST_ROWS && amx::usable(); }

template <class T> Tiles tiles_of(long rows) { return {rows, lined<T>(rows) ? amx::HEIGHT : TILE_ROWS<T>}; }
inline Tiles tiles_of(Format reader, long rows) {
    switch (reader) {
        case Format::Float32: return tiles_of<float>(rows);
        case Format::BFloat16: return tiles_of<bf16>(rows);
        case Format::Channels: return tiles_of<int8_t>(rows);
        default: return {rows, GROUP_TILE_ROWS};
    }
}

// Rows for weights of float32, bf16 or int8 in the order in which products read them, tile by tile: [depth / PAIR][rows of
// the tile][PAIR], or, for matrix registers, with a cache line of each row in turn: [depth / 32][rows of the tile][32] of
// bf16.
template <class T> struct Rows {
    using Value = Kept<T>;
    static constexpr int MOST = TILE_ROWS<T>;  // rows of a tile
    template <int ROWS> static constexpr int STREAMS = phx::STREAMS<ROWS>;
    Value* data;
    long depth;  // a multiple of 64
    bool lined;
    Tiles tiles;

    Rows(Value* data, long depth, long count)
        : data(data), depth(depth), lined(phx::lined<T>(count)), tiles(tiles_of<T>(count)) {}

    // The first `count` of 16 values from input k of row m on; both are multiples of PAIR, except at a row's end.
    PHX_INLINE void put(long m, long k, F32 x, long count) const {
        Value values[LANES];
        keep(values, x, T{});
        put(m, k, values, count);
    }
    PHX_INLINE void put(long m, long k, const Value (&values)[LANES], long count) const {
        constexpr long P = PAIR<T>, L = LINE / long(sizeof(Value));
        const long tile = tiles.of(m), first = tiles.begin(tile), height = tiles.height(tile);
        Value* start = data + first * depth;
        if (!lined) {
            Value* to = start + k * height + (m - first) * P;
            for (long i = 0; i < std::min<long>(count, LANES); i += P) std::memcpy(to + i * height, values + i, P * sizeof(Value));
            return;
        }
        const auto place = [&](long k) { return start + (k / L * height + m - first) * L + k % L; };
        if (k % LANES == 0 && count >= LANES) {
            std::memcpy(place(k), values, sizeof(values));
        } else {
            for (long i = 0; i < std::min<long>(count, LANES); i += P) std::memcpy(place(k + i), values + i, P * sizeof(Value));
        }
    }
};

// Rows of int8 for weights of channels, with a scale each, and with what exact sums start with: the share of the weights'
// centre.
struct TokenRows : Rows<int8_t> {
    float* scales;
    int32_t* starts;

    TokenRows(Value* data, float* scales, int32_t* starts, long depth, long count)
        : Rows(data, depth, count), scales(scales), starts(starts) {}

    // Row m from `size` floats, filled up with zeros to `width`.
    void quantise(const float* x, long size, long width, long m) const {
        F32 most = zero();
        for (long k = 0; k < size; k += LANES) {
            const F32 some = load_some(x + k, size - k);
            most = max(most, max(some, sub(zero(), some)));
        }
        const float range = largest(most);
        const F32 inverse = set1(range > 0 ? 127.0f / range : 0.0f);
        I32 total = set1(int32_t(0));
        for (long k = 0; k < width; k += LANES) {
            const I32 codes = to_int(mul(k < size ? load_some(x + k, size - k) : zero(), inverse));
            total = add(total, codes);
            Value kept[LANES];
            keep(kept, codes);
            put(m, k, kept, LANES);
        }
        scales[m] = range / 127.0f;
        starts[m] = -centre(8) * sum(total);
    }
};

// 16 outputs of row m, those of panel n, from their sums.
template <class A> PHX_INLINE F32 output(const A&, long, const Weight&, long, F32 sum) { return sum; }
PHX_INLINE F32 output(const TokenRows& a, long m, const Weight& w, long n, I32 sum) {
    return mul(mul(to_float(add(sum, set1(a.starts[m]))), set1(a.scales[m])), load(w.channels + n * LANES));
}

// A group's 32 values in 8 bits with a scale of their own. Fewer than 32 are filled up with zeros.
struct RoundedGroup {
    F32 source[2];
    I32 codes[2];
    float scale;

    PHX_INLINE RoundedGroup(const float* x, long size) {
        float last[GROUP] = {};
        if (size < GROUP) {
            std::memcpy(last, x, std::max<long>(0, size) * sizeof(float));
            x = last;
        }
        source[0] = load(x), source[1] = load(x + LANES);
        const F32 magnitude = max(max(source[0], sub(zero(), source[0])), max(source[1], sub(zero(), source[1])));
        const float most = largest(magnitude);
        const F32 inverse = set1(most > 0 ? 127.0f / most : 0.0f);
        for (int half = 0; half < 2; ++half) codes[half] = to_int(mul(source[half], inverse));
        scale = most / 127.0f;
    }
    PHX_INLINE F32 values(int half) const { return mul(to_float(codes[half]), set1(scale)); }
};

// Rows of int8 for weights in groups of BITS: [depth / 4][rows of the tile][4] codes. For every 32 inputs, as [depth / 32][rows of
// the tile]: the scale, scale × sum of the codes, and what exact sums start with, which is the share of the weights' centre.
template <int BITS> struct GroupRows {
    using Value = Codes<BITS>;
    static constexpr int MOST = GROUP_TILE_ROWS;
    template <int> static constexpr int STREAMS = 1;
    Value* codes;
    float *scales, *weighted;
    int32_t* starts;
    long depth;
    Tiles tiles;
    long groups() const { return depth / GROUP; }

    // Row m from `size` floats, filled up with zeros.
    void quantise(const float* x, long size, long m) const {
        const long tile = tiles.of(m), first = tiles.begin(tile), height = tiles.height(tile);
        Value* to = codes + first * depth + (m - first) * 4;
        for (long group = 0, place = first * groups() + m - first; group < groups(); ++group, place += height) {
            const RoundedGroup rounded(x + group * GROUP, size - group * GROUP);
            Value row[GROUP];
            for (int half = 0; half < 2; ++half) keep(row + half * LANES, rounded.codes[half]);
            for (long k = 0; k < GROUP; k += 4, to += height * 4) std::memcpy(to, row + k, 4 * sizeof(Value));
            const int32_t total = sum(add(rounded.codes[0], rounded.codes[1]));
            scales[place] = rounded.scale;
            weighted[place] = rounded.scale * float(total);
            starts[place] = -centre(BITS) * total;
        }
    }
};

inline float half_to_float(f16 h) {
    f16 many[LANES] = {h};
    float wide[LANES];
    store(wide, load_f16(many));
    return wide[0];
}

// Row `row` of a packed table.
inline void unpack_row(const Weight& w, long row, float* out) {
    const char* panel = w.panel(row / LANES);
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(panel);
    const long lane = row % LANES, first_group = row / LANES * w.groups();
    const auto each = [&](auto value) {
        for (long k = 0; k < w.inputs; ++k) out[k] = value(k);
    };
    const auto byte = [&](long k) { return codes[(k / 4 * LANES + lane) * 4 + k % 4]; };
    const auto half = [&](long k) {
        return uint8_t(codes[(k / 8 * LANES + lane) * 4 + k % 4] >> (k % 8 < 4 ? 0 : 4)) & 15;
    };
    const auto each_group = [&](auto code) {
        for (long first = 0; first < w.inputs; first += GROUP) {
            const long place = (first_group + first / GROUP) * LANES + lane;
            const float scale = half_to_float(w.scales[place]);
            const float offset = w.offsets ? half_to_float(w.offsets[place]) : -scale * float(centre(w.format == Format::Int4 ? 4 : 8));
            for (long k = first; k < std::min(first + GROUP, w.inputs); ++k) out[k] = scale * float(code(k)) + offset;
        }
    };
    switch (w.format) {
        case Format::Float32: return each([&](long k) { return reinterpret_cast<const float*>(panel)[k * LANES + lane]; });
        case Format::BFloat16:
            return each([&](long k) { return to_float(reinterpret_cast<const bf16*>(panel)[(k / 2 * LANES + lane) * 2 + k % 2]); });
        case Format::Int8: return each_group(byte);
        case Format::Int4: return each_group(half);
        case Format::Channels: return each([&](long k) { return w.channels[row] * float(byte(k) - centre(8)); });
    }
}

}  // namespace phx
