// Work on single rows of activations, in float32: norms, rotation, quantisation, embedding.
#pragma once

#include <algorithm>
#include <cmath>

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

// One row as int8 with a scale and the sum of the codes for every 32 values; `width` is a multiple of 32, `size` of the
// values count.
inline void quantise(const float* x, long size, long width, int8_t* codes, float* scales, int32_t* sums) {
    for (long group = 0; group < width / GROUP; ++group) {
        const float* values = x + group * GROUP;
        float last[GROUP] = {};
        if (size - group * GROUP < GROUP) {
            std::memcpy(last, values, std::max<long>(0, size - group * GROUP) * sizeof(float));
            values = last;
        }
        const F32 low = load(values), high = load(values + LANES);
        const F32 magnitude = max(max(low, sub(zero(), low)), max(high, sub(zero(), high)));
        const float most = largest(magnitude), inverse = most > 0 ? 127.0f / most : 0.0f;
        const I32 first = to_int(mul(low, set1(inverse))), second = to_int(mul(high, set1(inverse)));
        store_bytes(codes + group * GROUP, first);
        store_bytes(codes + group * GROUP + LANES, second);
        scales[group] = most / 127.0f;
        sums[group] = sum(add(first, second));
    }
}

inline float half_to_float(f16 h) {
    f16 many[LANES] = {h};
    float wide[LANES];
    store(wide, load_f16(many));
    return wide[0];
}

// Row `row` of a packed table.
inline void unpack_row(const Weight& w, long row, float* out) {
    const char* panel = w.panel(row / LANES);
    const long lane = row % LANES, first_group = row / LANES * w.groups();
    float scale = 0, offset = 0;
    for (long k = 0; k < w.inputs; ++k) {
        if (w.format == Format::Float32) {
            out[k] = reinterpret_cast<const float*>(panel)[k * LANES + lane];
            continue;
        }
        if (w.format == Format::BFloat16) {
            out[k] = to_float(reinterpret_cast<const bf16*>(panel)[(k / 2 * LANES + lane) * 2 + k % 2]);
            continue;
        }
        if (k % GROUP == 0) {
            const long place = (first_group + k / GROUP) * LANES + lane;
            scale = half_to_float(w.scales[place]);
            offset = w.offsets ? half_to_float(w.offsets[place]) : -scale * (w.format == Format::Int8 ? 128 : 8);
        }
        const uint8_t* codes = reinterpret_cast<const uint8_t*>(panel);
        const uint8_t code = w.format == Format::Int8
                                 ? codes[(k / 4 * LANES + lane) * 4 + k % 4]
                                 : uint8_t(codes[(k / 8 * LANES + lane) * 4 + k % 4] >> (k % 8 < 4 ? 0 : 4)) & 15;
        out[k] = scale * float(code) + offset;
    }
}

}  // namespace phx
