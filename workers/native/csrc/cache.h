// The KV cache of one layer, in the shape that products read.
//
// A tile is 16 tokens of one KV head: keys as [depth / PAIR][16 tokens][PAIR], values as [16 / PAIR][depth][PAIR],
// `depth` being head_dim filled up to 16. A block of tokens is as many tiles for one head after the other.
//
// In 8 bits a tile's codes are followed by a float32 scale for each of its tokens. With one scale for a head's whole
// vector, scores are multiplied by their keys' scales and softmax's weights by their values', and the products
// themselves are of integers. A finer one would cost a multiplication for each part of the (64 or 128) dimensions; with
// a coarser one, tokens or heads would round each other, and what is cached would depend on how a model is cut.
#pragma once

#include <algorithm>
#include <type_traits>

#include "dot.h"

namespace phx {

constexpr long TILE = 16;         // tokens
constexpr float LEAST = 1e-30f;   // counts as the largest magnitude of zeros: their scale has to have an inverse

struct CacheShape {
    long blocks, block_size, kv_heads, head_dim;
    long depth() const { return round_up(head_dim, LANES); }
    long tiles() const { return (block_size + TILE - 1) / TILE; }
    long tile_elements() const { return TILE * depth(); }
};

inline float largest_magnitude(const float* x, long size) {  // a multiple of 16
    F32 most = zero();
    for (long i = 0; i < size; i += LANES) most = max(most, max(load(x + i), sub(zero(), load(x + i))));
    return largest(most);
}

// Of the 16 tokens of a tile in 8 bits.
inline const float* scales_of(const int8_t* tile, long depth) { return reinterpret_cast<const float*>(tile + TILE * depth); }

// Keys and values kept as float, bf16 or, with scales, int8_t: values from -127 to 127, keys from 1 to 255 (unsigned).
template <class T> struct Cache {
    static constexpr bool SCALED = std::is_same_v<T, int8_t>;

    CacheShape shape;
    T *keys, *values;

    // In T's, scales included: of a tile, and of all keys or all values.
    static long tile_size(const CacheShape& shape) { return shape.tile_elements() + (SCALED ? TILE * long(sizeof(float)) : 0); }
    static long size(const CacheShape& shape) { return shape.blocks * shape.kv_heads * shape.tiles() * tile_size(shape); }

    long place(long block, long head, long tile) const {
        return ((block * shape.kv_heads + head) * shape.tiles() + tile) * tile_size(shape);
    }
    // One token's key and value for one head, filled up with zeros to `depth`.
    void write(long block, long offset, long head, const float* key, const float* value) const {
        constexpr long P = PAIR<T>;
        const long at = place(block, head, offset / TILE), lane = offset % TILE, depth = shape.depth();
        T* k = keys + at + lane * P;
        T* v = values + at + lane / P * depth * P + lane % P;
        const float key_steps = steps(key, keys + at, lane), value_steps = steps(value, values + at, lane);
        for (long d = 0; d < depth; d += LANES) {
            T both[2][LANES];
            keep(both[0], load(key + d), key_steps, 128);
            keep(both[1], load(value + d), value_steps, 0);
            for (long i = 0; i < LANES; i += P) std::memcpy(k + (d + i) / P * TILE * P, both[0] + i, P * sizeof(T));
            for (long i = 0; i < LANES; ++i) v[(d + i) * P] = both[1][i];
        }
    }

  private:
    template <class Float> static void keep(Float* to, F32 x, float, int32_t) { store_as(to, x); }
    static void keep(int8_t* to, F32 x, float steps, int32_t centre) {
        store_bytes(to, add(to_int(mul(x, set1(steps))), set1(centre)));
    }

    // Writes down the scale of one token's vector; returns how many of its steps make 1.
    float steps(const float* x, T* tile, long lane) const {
        if constexpr (!SCALED) return 1;
        const float most = largest_magnitude(x, shape.depth()), scale = most / 127;
        std::memcpy(tile + shape.tile_elements() + lane * long(sizeof(float)), &scale, sizeof(float));
        return 127 / std::max(most, LEAST);
    }
};

}  // namespace phx
