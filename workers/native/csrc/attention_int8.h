// Attention's products with keys and values in 8 bits, exactly, on 16 bits of the other side.
//
// To widen tiles to bf16 first takes longer than reading them in bf16 would have, unless many rows share them; to round
// queries and softmax's weights to 8 bits loses those far below the largest. So these have 16 bits: as two bytes where the
// processor multiplies bytes, in as many instructions as in bf16, and as they are elsewhere.
#pragma once

#include <algorithm>

#include "cache.h"
#include "gemm.h"
#include "pages.h"

namespace phx {

#if defined(__AVX512F__)

// What numbers are kept in for products: of every 16 the high bytes, then the low ones.
using Part = int8_t;
constexpr long PARTS_EACH = 2;
constexpr float LARGEST_WEIGHT = 65535;  // unsigned
inline float largest_query(long) { return 127 * 256 + 127; }  // signed, low bytes too
PHX_INLINE void keep_query(Part* to, I32 code) {
    store_bytes(to, shift_right<8>(add(code, set1(128))));
    store_bytes(to + LANES, code);
}
PHX_INLINE void keep_weight(Part* to, I32 code) {
    store_bytes(to, shift_right<8>(code));
    store_bytes(to + LANES, code);
}

// Exact sums of products with the four numbers that are `k` from the first of 16, in each lane.
struct Exact {
    I32 high = set1(0), low = set1(0);
    PHX_INLINE void add_keys(I32 keys, const Part* queries, long k) {  // keys are unsigned
        high = dot_u8s8(high, keys, spread(queries + k)), low = dot_u8s8(low, keys, spread(queries + LANES + k));
    }
    PHX_INLINE void add_values(I32 values, const Part* weights, long k) {  // values are signed
        high = dot_u8s8(high, spread(weights + k), values), low = dot_u8s8(low, spread(weights + LANES + k), values);
    }
    PHX_INLINE F32 value() const { return fma(to_float(high), set1(256.0f), to_float(low)); }
    PHX_INLINE Exact negative() const { return {mul(high, set1(-1)), mul(low, set1(-1))}; }
};

#else

using Part = int16_t;
constexpr long PARTS_EACH = 1;
constexpr float LARGEST_WEIGHT = 32767;
inline float largest_query(long depth) { return std::min<float>(32767, float((1l << 31) / (128 * depth))); }  // as sums are of 32 bits
PHX_INLINE void keep_query(Part* to, I32 code) { keep(to, code); }
PHX_INLINE void keep_weight(Part* to, I32 code) { keep(to, code); }

struct Exact {
    I32 all = set1(0);
    PHX_INLINE void add_keys(I32 keys, const Part* queries, long k) { all = Bytes<false>(keys).dot(all, queries + k); }
    PHX_INLINE void add_values(I32 values, const Part* weights, long k) { all = Bytes<true>(values).dot(all, weights + k); }
    PHX_INLINE F32 value() const { return to_float(all); }
    PHX_INLINE Exact negative() const { return {mul(all, set1(-1))}; }
};

#endif

// Rows of numbers of 16 bits, with a scale each.
struct Numbers {
    Lines<Part> parts;
    Lines<float> scale;
    const long stride;
    Numbers(long rows, long width) : parts(rows * PARTS_EACH * width), scale(rows), stride(PARTS_EACH * width) {}
    Part* of(long r, long i) { return parts.data() + r * stride + PARTS_EACH * i; }  // the 16 from i on
    const Part* of(long r, long i) const { return parts.data() + r * stride + PARTS_EACH * i; }
};

// Products of queries begin with the share of the keys' centre.
struct Int8Queries : Numbers {
    Lines<Exact> start;
    Int8Queries(long rows, long width) : Numbers(rows, width), start(rows) {}

    void put(long r, const float* x, long width) {
        const float steps = largest_query(width) / std::max(largest_magnitude(x, width), LEAST);
        const I32 centre = set1(int32_t(0x80808080));
        Exact share;
        for (long i = 0; i < width; i += LANES) {
            keep_query(of(r, i), to_int(mul(load(x + i), set1(steps))));
            for (long k = 0; k < LANES; k += 4) share.add_keys(centre, of(r, i), k);
        }
        scale[r] = 1 / steps;
        start[r] = share.negative();
    }
};

template <int R, int C>
PHX_INLINE void score_tiles(const Int8Queries& q, long row, long depth, const int8_t* const* keys,
                            const int8_t* const* ahead, float* scores, long stride) {
    Exact exact[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) exact[r][c] = q.start[row + r];
    for (long d = 0; d < depth; d += LANES) {
        for (long k = 0; k < LANES; k += 4) {
            I32 w[C];
            for (int c = 0; c < C; ++c) w[c] = load_weights(keys[c] + (d + k) * TILE), prefetch(ahead[c] + (d + k) * TILE);
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c) exact[r][c].add_keys(w[c], q.of(row + r, d), k);
        }
    }
    for (int c = 0; c < C; ++c) {
        const F32 scales = load(scales_of(keys[c], depth));
        prefetch(ahead[c] + TILE * depth);
        for (int r = 0; r < R; ++r) {
            store(scores + (row + r) * stride + c * TILE, mul(exact[r][c].value(), mul(scales, set1(q.scale[row + r]))));
        }
    }
}

// out += weights · values, for C × 16 dimensions from `dim` on.
template <int R, int C>
PHX_INLINE void mix_tile(const Numbers& weights, long row, const int8_t* const* values, const int8_t* const* ahead,
                         long tiles, long depth, long dim, float* out) {
    Exact exact[R][C];
    for (long t = 0; t < tiles; ++t) {
        const int8_t *tile = values[t] + dim * 4, *next = ahead[t] + dim * 4;
        for (long k = 0; k < TILE; k += 4) {
            I32 v[C];
            for (int c = 0; c < C; ++c) {
                v[c] = load_weights(tile + k * depth + c * LANES * 4);
                prefetch(next + k * depth + c * LANES * 4);
            }
            for (int r = 0; r < R; ++r)
                for (int c = 0; c < C; ++c) exact[r][c].add_values(v[c], weights.of(row + r, t * TILE), k);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) {
            float* to = out + (row + r) * depth + dim + c * LANES;
            store(to, fma(exact[r][c].value(), set1(weights.scale[row + r]), load(to)));
        }
    }
}

// Calls work(R, row) for all rows, R at once and then what is left: R as a type, so that it can size arrays.
template <int R, class Work> void in_tiles(long row, long rows, const Work& work) {
    for (; row + R <= rows; row += R) work(std::integral_constant<int, R>{}, row);
    if constexpr (R > 1) {
        if (row < rows) in_tiles<R - 1>(row, rows, work);
    }
}

// The same steps as FloatProducts, in attention_float.h.
class Int8Products {
  public:
    using Weights = int8_t;

    Int8Products(long rows, long depth, long keys)
        : queries_(rows, depth), weights_(rows, keys), depth_(depth), keys_(keys), query_(depth), weight_(keys) {}

    template <class T> void take(long row, const T* queries, long count) {
        for (long r = 0; r < count; ++r) {
            for (long d = 0; d < depth_; ++d) query_[d] = widen(queries[r * depth_ + d]);
            queries_.put(row + r, query_.data(), depth_);
        }
    }

    void score(const int8_t* const* keys, const int8_t* const* ahead, long tiles, long begin, long end, float* scores) const {
        scores -= begin * keys_;
        long t = 0;
        for (; t + TILE_PANELS <= tiles; t += TILE_PANELS) {
            in_tiles<GROUP_TILE_ROWS>(begin, end, [&](auto r, long row) {
                score_tiles<r.value, TILE_PANELS>(queries_, row, depth_, keys + t, (row > begin ? keys : ahead) + t, scores + t * TILE, keys_);
            });
        }
        if (t == tiles) return;
        in_tiles<GROUP_TILE_ROWS>(begin, end, [&](auto r, long row) {
            score_tiles<r.value, 1>(queries_, row, depth_, keys + t, (row > begin ? keys : ahead) + t, scores + t * TILE, keys_);
        });
    }

    static long at_once(long rows) { return rows; }
    static bool in_matrix_registers(long) { return false; }
    void meet(const int8_t* const*, const int8_t* const*, const int8_t* const*, const int8_t* const*, long, long) {}

    float* weights(long) { return weight_.data(); }
    PHX_INLINE void weigh(float* to, F32 weight, const int8_t* values) const {
        store(to, mul(weight, load(scales_of(values, depth_))));
    }

    void weighed(long row, long tiles) {
        F32 best = zero();
        for (long t = 0; t < tiles; ++t) best = max(best, load(weight_.data() + t * TILE));
        const float steps = LARGEST_WEIGHT / std::max(largest(best), LEAST);
        weights_.scale[row] = 1 / steps;
        for (long i = 0; i < tiles * TILE; i += LANES) {
            keep_weight(weights_.of(row, i), to_int(mul(load(weight_.data() + i), set1(steps))));
        }
    }

    void mix(const int8_t* const* values, const int8_t* const* ahead, long tiles, long begin, long end, float* out) const {
        out -= begin * depth_;
        in_tiles<GROUP_TILE_ROWS>(begin, end, [&](auto r, long row) {
            const int8_t* const* next = row > begin ? values : ahead;
            long dim = 0;
            for (; dim + TILE_PANELS * LANES <= depth_; dim += TILE_PANELS * LANES) {
                mix_tile<r.value, TILE_PANELS>(weights_, row, values, next, tiles, depth_, dim, out);
            }
            if (dim < depth_) mix_tile<r.value, 1>(weights_, row, values, next, tiles, depth_, dim, out);
        });
    }

  private:
    Int8Queries queries_;
    Numbers weights_;
    const long depth_, keys_;
    Lines<float> query_, weight_;  // one row on its way
};

}  // namespace phx
