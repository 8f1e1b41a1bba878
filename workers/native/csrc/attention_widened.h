// Attention's products with keys and values in 8 bits for many rows, in matrix registers: tiles are widened once for all of
// them, to bf16, which has room for every code. What their scales are multiplied with are scores and softmax's weights.
// Vector registers multiply codes as they are (attention_int8.h) about as quickly as bf16.
#pragma once

#include <type_traits>
#include <vector>

#include "attention_float.h"
#include "cache.h"

namespace phx {

// Four signed codes of each lane: the first two, and the others.
PHX_INLINE void widen_codes(I32 codes, bf16* first, bf16* second) {
    const auto one = [&](auto place) {
        return as_int(to_float(shift_right<24>(shift_left<24 - 8 * place>(codes))));  // the lower half is zero
    };
    const auto two = [&](auto low, auto high) { return add(shift_in_zeros<16>(one(low)), one(high)); };
    store(reinterpret_cast<int32_t*>(first), two(std::integral_constant<int, 0>(), std::integral_constant<int, 1>()));
    store(reinterpret_cast<int32_t*>(second), two(std::integral_constant<int, 2>(), std::integral_constant<int, 3>()));
}

inline void widen_keys(const int8_t* keys, const int8_t* ahead, long depth, bf16* to) {
    for (long i = 0; i < TILE * depth; i += LINE) {
        prefetch(ahead + i);
        const I32 codes = bits_xor(load_weights(keys + i), set1(int32_t(0x80808080)));  // they are unsigned
        widen_codes(codes, to + i, to + i + LINE / 2);
    }
}

inline void widen_values(const int8_t* values, const int8_t* ahead, long depth, bf16* to) {
    for (long k = 0; k < TILE * depth; k += 4 * depth) {  // tokens
        for (long d = 0; d < depth; d += LANES) {
            prefetch(ahead + k + 4 * d);
            widen_codes(load_weights(values + k + 4 * d), to + k + 2 * d, to + k + 2 * depth + 2 * d);
        }
    }
}

// The same steps as FloatProducts.
class WidenedProducts {
  public:
    using Weights = bf16;

    WidenedProducts(long rows, long depth, long keys)
        : products_(rows, depth, keys), tiles_(2 * keys * depth), keys_(keys / TILE), values_(keys / TILE), depth_(depth),
          stride_(keys) {
        for (long t = 0; t < keys / TILE; ++t) {
            keys_[t] = tiles_.data() + t * TILE * depth, values_[t] = keys_[t] + keys * depth;
        }
    }

    static bool in_matrix_registers(long rows) { return FloatProducts<bf16>::in_matrix_registers(rows); }
    static long at_once(long rows) { return FloatProducts<bf16>::at_once(rows); }

    void take(long row, const Kept<bf16>* queries, long count) { products_.take(row, queries, count); }

    void meet(const int8_t* const* keys, const int8_t* const* values, const int8_t* const* ahead_keys,
              const int8_t* const* ahead_values, long tiles, long rows) {
        for (long t = 0; t < tiles; ++t) {
            widen_keys(keys[t], ahead_keys[t], depth_, keys_[t]);
            widen_values(values[t], ahead_values[t], depth_, values_[t]);
        }
        products_.meet(keys_.data(), values_.data(), keys_.data(), values_.data(), tiles, rows);
    }

    void score(const int8_t* const* keys, const int8_t* const*, long tiles, long begin, long end, float* scores) const {
        products_.score(keys_.data(), keys_.data(), tiles, begin, end, scores);
        for (long t = 0; t < tiles; ++t) {
            const F32 scales = load(scales_of(keys[t], depth_));
            for (long r = 0; r < end - begin; ++r) {
                float* score = scores + r * stride_ + t * TILE;
                store(score, mul(load(score), scales));
            }
        }
    }

    Kept<bf16>* weights(long row) { return products_.weights(row); }
    PHX_INLINE void weigh(Kept<bf16>* to, F32 weight, const int8_t* values) const {
        keep(to, mul(weight, load(scales_of(values, depth_))), bf16{});
    }
    void weighed(long, long) {}

    void mix(const int8_t* const*, const int8_t* const*, long tiles, long begin, long end, float* out) const {
        products_.mix(values_.data(), values_.data(), tiles, begin, end, out);
    }

  private:
    FloatProducts<bf16> products_;
    Lines<bf16> tiles_;
    std::vector<bf16*> keys_, values_;  // widened
    const long depth_, stride_;
};

}  // namespace phx
