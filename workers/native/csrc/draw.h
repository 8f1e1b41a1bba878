// A random draw from logits: the arg-max of logit / temperature + Gumbel noise, as in workers/sampling/noise.py.
//
// The noise is -log(-log(1 - u)), where u is a hash of seed, position and token, from 0 to 1. It is no more than -log(u),
// and that no more than what the float u's bits say of its logarithm, so that all but a few tokens of a vocabulary are
// ruled out without a logarithm.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.h"

extern "C" {

// How a row's token is drawn; workers/sampling/draws.py has the same. Temperature 0: the likeliest.
struct PhxDraw {
    uint64_t seed;
    int64_t position;
    float temperature;
    int32_t top_k;  // 0, 1 and 0: off
    float top_p, min_p;
};

}

namespace phx {

constexpr int32_t HASH_A = 0x7FEB352D, HASH_B = int32_t(0x846BA685);

// The half of the hash that is the same at every step.
PHX_INLINE I32 token_keys(I32 ids) {
    I32 x = add(ids, set1(0x3C6EF372));
    x = mul(bits_xor(x, shift_in_zeros<16>(x)), set1(HASH_A));
    x = mul(bits_xor(x, shift_in_zeros<15>(x)), set1(HASH_B));
    return bits_xor(x, shift_in_zeros<16>(x));
}

// What a row's logits become before the largest is taken.
class Scores {
  public:
    explicit Scores(const PhxDraw& draw) : temperature_(draw.temperature) {
        // As in workers/seeds.py.
        uint64_t z = draw.seed + 0x9E3779B97F4A7C15 * (uint64_t(draw.position) + 1);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
        z ^= z >> 31;
        keys_[0] = int32_t(uint32_t(z)), keys_[1] = int32_t(uint32_t(z >> 32));

        constexpr float most = std::numeric_limits<float>::max();
        const float inverse = temperature_ > 0 ? std::min(1 / temperature_, most) : 1;
        high_ = std::min(inverse * (1 + MARGIN), most), low_ = inverse * (1 - MARGIN);
    }

    bool random() const { return temperature_ > 0; }

    // 31 random bits for each token.
    PHX_INLINE I32 hash(I32 keys) const {
        I32 x = bits_xor(keys, set1(keys_[0]));
        x = mul(bits_xor(x, shift_in_zeros<16>(x)), set1(HASH_A));
        x = add(x, set1(keys_[1]));
        x = mul(bits_xor(x, shift_in_zeros<15>(x)), set1(HASH_B));
        return bits_and(bits_xor(x, shift_in_zeros<16>(x)), set1(0x7FFFFFFF));
    }

    // No less than the scores, and 0.06 more at most where noise is large; of a random draw.
    PHX_INLINE F32 bound(F32 logits, I32 hash) const {
        constexpr float LN_2 = 0.693147181f;
        const F32 bits = to_float(as_int(add(to_float(hash), set1(0.5f))));  // 2^23 (127 + log2) or a little less
        const F32 noise = fma(bits, set1(-LN_2 / (1 << 23)), set1(LN_2 * (127 + 31) + 1e-4f));
        return add(max(mul(logits, set1(high_)), mul(logits, set1(low_))), noise);
    }

    float score(float logit, int32_t hash) const {
        if (!random()) return logit;
        const float u = std::min((float(hash) + 0.5f) * 0x1p-31f, 1 - 0x1p-24f);
        return logit / temperature_ + float(-std::log(-std::log1p(-double(u))));
    }

  private:
    static constexpr float MARGIN = 1e-6f;  // of roundings
    float temperature_, high_, low_;
    int32_t keys_[2];
};

// The best score of each row so far, and where; of equal ones the first. A `finish` of products.
struct KeepBest {
    static constexpr bool PAIRS = false;
    const Scores* scores;  // [rows]
    const int32_t* keys;   // of the columns' tokens, padded to 16
    float* values;
    int32_t* places;
    long columns;

    PHX_INLINE void operator()(long m, long n, F32 x) const {
        I32 hash;
        const F32 most = bound(m, n, x, hash);
        if (any_above(most, values[m])) compare(m, n, x, most, hash);
    }

    // Whether one of these logits may score above a limit.
    PHX_INLINE bool above(float limit, long m, long n, F32 x) const {
        I32 hash;
        return any_above(bound(m, n, x, hash), limit);
    }

  private:
    PHX_INLINE F32 bound(long m, long n, F32 x, I32& hash) const {
        hash = set1(0);
        if (!scores[m].random()) return x;
        hash = scores[m].hash(load(keys + n));
        return scores[m].bound(x, hash);
    }

    __attribute__((noinline)) void compare(long m, long n, F32 x, F32 most, I32 hash) const {
        float logits[LANES], bounds[LANES];
        int32_t hashes[LANES];
        store(logits, x), store(bounds, most), store(hashes, hash);
        for (long i = 0; i < std::min<long>(LANES, columns - n); ++i) {
            if (!(bounds[i] > values[m])) continue;
            const float score = scores[m].score(logits[i], hashes[i]);
            if (score > values[m]) values[m] = score, places[m] = int32_t(n + i);
        }
    }
};

}  // namespace phx
