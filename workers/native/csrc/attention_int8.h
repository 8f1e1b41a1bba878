// Attention's products with keys and values in 8 bits, exactly, on 16 bits of the other side.
//
// To widen tiles to bf16 first takes longer than reading them in bf16 would have; to round queries and softmax's weights
// to 8 bits loses those far below the largest. So these have 16 bits, as two bytes: as many instructions as in bf16.
#pragma once

#include "cache.h"
#include "gemm.h"
#include "pages.h"

namespace phx {

// Rows of 16-bit numbers, scale · (256 · high + low): the high bytes of 16 of them, then their low ones.
struct TwoBytes {
    Lines<int8_t> bytes;
    Lines<float> scale;
    const long stride;
    TwoBytes(long rows, long width) : bytes(rows * 2 * width), scale(rows), stride(2 * width) {}
    int8_t* row(long r) { return bytes.data() + r * stride; }
    const int8_t* row(long r) const { return bytes.data() + r * stride; }
};

// Queries are signed, low bytes too; the products begin with the share of the keys' centre, -128 · the sum of either.
struct Int8Queries : TwoBytes {
    Lines<int32_t> high_start, low_start;
    Int8Queries(long rows, long width) : TwoBytes(rows, width), high_start(rows), low_start(rows) {}

    void put(long r, const float* x, long width) {
        constexpr float LARGEST = 127 * 256 + 127;
        const float most = std::max(largest_magnitude(x, width), LEAST);
        I32 all = set1(0), upper = set1(0);
        for (long i = 0; i < width; i += LANES) {
            const I32 code = to_int(mul(load(x + i), set1(LARGEST / most))), high = shift_right<8>(add(code, set1(128)));
            store_bytes(row(r) + 2 * i, high);
            store_bytes(row(r) + 2 * i + LANES, code);
            all = add(all, code), upper = add(upper, high);
        }
        scale[r] = most / LARGEST;
        high_start[r] = -128 * sum(upper), low_start[r] = -128 * (sum(all) - 256 * sum(upper));
    }
};

template <int R, int C>
PHX_INLINE void score_tiles(const Int8Queries& q, long row, long depth, const int8_t* const* keys,
                            const int8_t* const* ahead, float* scores, long stride) {
    I32 high[R][C], low[R][C];
    const int8_t* from[R];
    for (int r = 0; r < R; ++r) {
        from[r] = q.row(row + r);
        for (int c = 0; c < C; ++c) high[r][c] = set1(q.high_start[row + r]), low[r][c] = set1(q.low_start[row + r]);
    }
    for (long d = 0; d < depth; d += LANES) {
        for (long k = 0; k < LANES; k += 4) {
            I32 w[C];
            for (int c = 0; c < C; ++c) w[c] = load_weights(keys[c] + (d + k) * TILE), prefetch(ahead[c] + (d + k) * TILE);
            for (int r = 0; r < R; ++r) {
                const I32 h = spread(from[r] + 2 * d + k), l = spread(from[r] + 2 * d + LANES + k);
                for (int c = 0; c < C; ++c) high[r][c] = dot_u8s8(high[r][c], w[c], h), low[r][c] = dot_u8s8(low[r][c], w[c], l);
            }
        }
    }
    for (int c = 0; c < C; ++c) {
        const F32 scales = load(reinterpret_cast<const float*>(keys[c] + TILE * depth));
        prefetch(ahead[c] + TILE * depth);
        for (int r = 0; r < R; ++r) {
            const F32 exact = fma(to_float(high[r][c]), set1(256.0f), to_float(low[r][c]));
            store(scores + (row + r) * stride + c * TILE, mul(exact, mul(scales, set1(q.scale[row + r]))));
        }
    }
}

// out += weights · values, for C × 16 dimensions from `dim` on. Weights are unsigned, values signed.
template <int R, int C>
PHX_INLINE void mix_tile(const TwoBytes& weights, long row, const int8_t* const* values, const int8_t* const* ahead,
                         long tiles, long depth, long dim, float* out) {
    I32 high[R][C], low[R][C];
    const int8_t* from[R];
    for (int r = 0; r < R; ++r) {
        from[r] = weights.row(row + r);
        for (int c = 0; c < C; ++c) high[r][c] = low[r][c] = set1(0);
    }
    for (long t = 0; t < tiles; ++t) {
        const int8_t *tile = values[t] + dim * 4, *next = ahead[t] + dim * 4;
        for (long k = 0; k < TILE; k += 4) {
            I32 v[C];
            for (int c = 0; c < C; ++c) {
                v[c] = load_weights(tile + k * depth + c * LANES * 4);
                prefetch(next + k * depth + c * LANES * 4);
            }
            for (int r = 0; r < R; ++r) {
                const I32 h = spread(from[r] + t * 2 * TILE + k), l = spread(from[r] + t * 2 * TILE + TILE + k);
                for (int c = 0; c < C; ++c) high[r][c] = dot_u8s8(high[r][c], h, v[c]), low[r][c] = dot_u8s8(low[r][c], l, v[c]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) {
            float* to = out + (row + r) * depth + dim + c * LANES;
            const F32 exact = fma(to_float(high[r][c]), set1(256.0f), to_float(low[r][c]));
            store(to, fma(exact, set1(weights.scale[row + r]), load(to)));
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

// The same steps as FloatProducts, in attention.h.
class Int8Products {
  public:
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
        for (; t + 2 <= tiles; t += 2) {
            in_tiles<ROWS>(begin, end, [&](auto r, long row) {
                score_tiles<r.value, 2>(queries_, row, depth_, keys + t, (row > begin ? keys : ahead) + t, scores + t * TILE, keys_);
            });
        }
        if (t == tiles) return;
        in_tiles<ROWS>(begin, end, [&](auto r, long row) {
            score_tiles<r.value, 1>(queries_, row, depth_, keys + t, (row > begin ? keys : ahead) + t, scores + t * TILE, keys_);
        });
    }

    static long at_once(long rows) { return rows; }
    static bool in_matrix_registers(long) { return false; }
    void meet(const int8_t* const*, const int8_t* const*, const int8_t* const*, long, long) {}

    float* weights(long) { return weight_.data(); }
    PHX_INLINE void weigh(float* to, F32 weight, const int8_t* values) const {
        store(to, mul(weight, load(reinterpret_cast<const float*>(values + TILE * depth_))));
    }

    void weighed(long row, long tiles) {
        constexpr float LARGEST = 65535;
        F32 best = zero();
        for (long t = 0; t < tiles; ++t) best = max(best, load(weight_.data() + t * TILE));
        const float most = std::max(largest(best), LEAST);
        weights_.scale[row] = most / LARGEST;
        for (long i = 0; i < tiles * TILE; i += LANES) {
            const I32 code = to_int(mul(load(weight_.data() + i), set1(LARGEST / most)));
            store_bytes(weights_.row(row) + 2 * i, shift_right<8>(code));
            store_bytes(weights_.row(row) + 2 * i + LANES, code);
        }
    }

    void mix(const int8_t* const* values, const int8_t* const* ahead, long tiles, long begin, long end, float* out) const {
        out -= begin * depth_;
        in_tiles<ROWS>(begin, end, [&](auto r, long row) {
            const int8_t* const* next = row > begin ? values : ahead;
            long dim = 0;
            for (; dim + 2 * LANES <= depth_; dim += 2 * LANES) {
                mix_tile<r.value, 2>(weights_, row, values, next, tiles, depth_, dim, out);
            }
            if (dim < depth_) mix_tile<r.value, 1>(weights_, row, values, next, tiles, depth_, dim, out);
        });
    }

  private:
    static constexpr int ROWS = TILE_ROWS / 2;  // as each has two sums

    Int8Queries queries_;
    TwoBytes weights_;
    const long depth_, keys_;
    Lines<float> query_, weight_;  // one row on its way
};

}  // namespace phx
