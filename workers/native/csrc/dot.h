// What products are made of: weights as vectors of 16 outputs, rows of activations, and sums of both in registers.
//
// A vector of weights has PAIR inputs of every output: one float32, two bf16 or four bytes. With AVX-512 an instruction
// multiplies and adds them all. Elsewhere activations are kept wider, so that what is left to do is the widening of
// weights, once for all rows of a tile: float32 for weights in bf16, 16 bits for weights in bytes.
#pragma once

#include "simd.h"

namespace phx {

template <class T> constexpr int PAIR = sizeof(float) / sizeof(T);

// What products of T add up to.
template <class T> using Sum = std::conditional_t<std::is_same_v<T, int8_t>, I32, F32>;
template <class T> PHX_INLINE Sum<T> no_sum() { return set1(std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>(0)); }

PHX_INLINE F32 load_weights(const float* p) { return load(p); }
PHX_INLINE I32 load_weights(const bf16* p) { return load(reinterpret_cast<const int32_t*>(p)); }
PHX_INLINE I32 load_weights(const int8_t* p) { return load(reinterpret_cast<const int32_t*>(p)); }
template <class T> using Vector = decltype(load_weights(static_cast<const T*>(nullptr)));

// Four bytes in every lane.
PHX_INLINE I32 spread_word(const void* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return set1(word);
}

PHX_INLINE void keep(int8_t* to, I32 codes) { store_bytes(to, codes); }
PHX_INLINE void keep(float* to, F32 x, float) { store(to, x); }

#if defined(__AVX512F__)

// What activations are kept as, for weights in T.
template <class T> using Kept = T;

PHX_INLINE void keep(bf16* to, F32 x, bf16) { store_as(to, x); }

// The most rows and panels of a tile, by the weights' type or in groups: as many as registers hold sums of. For few rows
// so many panels are read at once, and their sums take turns, so that none waits for the one before.
template <class T> constexpr int TILE_ROWS = 12;
constexpr int GROUP_TILE_ROWS = 6, TILE_PANELS = 2;
constexpr int LINES_AT_ONCE = 8;  // of a group
template <int ROWS> constexpr int STREAMS = 1;
template <int ROWS> constexpr int TURNS = ROWS == 1 ? 8 : 4;

PHX_INLINE F32 spread(const float* p) { return set1(*p); }
PHX_INLINE I32 spread(const bf16* p) { return spread_word(p); }
PHX_INLINE I32 spread(const int8_t* p) { return spread_word(p); }

PHX_INLINE F32 dot(F32 acc, F32 a, F32 b) { return fma(a, b, acc); }
// acc + a.low * b.low + a.high * b.high in each lane.
PHX_INLINE F32 dot(F32 acc, I32 a, I32 b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
// acc + the four products of unsigned weights and signed activations in each lane, exactly.
PHX_INLINE I32 dot_u8s8(I32 acc, I32 weights, I32 activations) { return _mm512_dpbusd_epi32(acc, weights, activations); }
PHX_INLINE I32 dot(I32 acc, I32 activations, I32 weights) { return dot_u8s8(acc, weights, activations); }

// acc[r][c] += the sum of PAIR products: the weights are those of panel c, the activations at rows + r * stride.
template <class T, int R, int C>
PHX_INLINE void multiply(const T* rows, long stride, const Vector<T> (&weights)[C], Sum<T> (&acc)[R][C]) {
    for (int r = 0; r < R; ++r) {
        const auto x = spread(rows + r * stride);
        for (int c = 0; c < C; ++c) acc[r][c] = dot(acc[r][c], x, weights[c]);
    }
}

#else

template <class T>
using Kept = std::conditional_t<std::is_same_v<T, bf16>, float, std::conditional_t<std::is_same_v<T, int8_t>, int16_t, T>>;

template <class T> constexpr int TILE_ROWS = std::is_same_v<T, int8_t> ? 4 : 6;
constexpr int GROUP_TILE_ROWS = 4, TILE_PANELS = 1;
constexpr int LINES_AT_ONCE = 2;  // with more of them the compiler puts products aside, in memory
template <int ROWS> constexpr int STREAMS = ROWS == 1 ? 2 : 1;
template <int ROWS> constexpr int TURNS = ROWS < 4 ? 2 : 1;

// As large as a bf16 that it is rounded to.
PHX_INLINE void keep(float* to, F32 x, bf16) { store(to, as_float(bits_and(rounded_bits(x), set1(int32_t(0xffff0000))))); }

// Of every four the first and the third, then the others: those that even and odd bytes of weights are multiplied with.
PHX_INLINE void keep(int16_t* to, I32 codes) {
    uint16_t words[LANES];
    store_words(words, codes);
    for (int i = 0; i < LANES; i += 4) {
        to[i] = int16_t(words[i]), to[i + 1] = int16_t(words[i + 2]);
        to[i + 2] = int16_t(words[i + 1]), to[i + 3] = int16_t(words[i + 3]);
    }
}

#if defined(__AVX2__)
// acc + the sums of two products of 16 bits in each lane.
PHX_INLINE NativeI dot_words(NativeI acc, __m256i a, __m256i b) {
    return (NativeI)_mm256_add_epi32((__m256i)acc, _mm256_madd_epi16(a, b));
}

// Bytes of each lane in 16 bits: the first and the third, and the others.
template <bool SIGNED> struct Bytes {
    __m256i even[PARTS], odd[PARTS];
    PHX_INLINE explicit Bytes(I32 x) {
        for (int i = 0; i < PARTS; ++i) {
            const __m256i all = (__m256i)x.part[i];
            even[i] = SIGNED ? _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8) : _mm256_and_si256(all, _mm256_set1_epi16(255));
            odd[i] = SIGNED ? _mm256_srai_epi16(all, 8) : _mm256_srli_epi16(all, 8);
        }
    }
    // acc + the sum of their products with four numbers, kept as `keep` does.
    PHX_INLINE I32 dot(I32 acc, const int16_t* numbers) const {
        const __m256i first = (__m256i)spread_word(numbers).part[0], second = (__m256i)spread_word(numbers + 2).part[0];
        PHX_EACH(I32, dot_words(dot_words(acc.part[i], even[i], first), odd[i], second));
    }
};
#else
template <bool SIGNED> struct Bytes {
    I32 bytes[4];  // the first, the third, the second, the fourth
    PHX_INLINE explicit Bytes(I32 x) {
        const auto one = [&](auto place) {
            const I32 upper = shift_left<24 - 8 * place>(x);
            return SIGNED ? shift_right<24>(upper) : shift_in_zeros<24>(upper);
        };
        bytes[0] = one(std::integral_constant<int, 0>()), bytes[1] = one(std::integral_constant<int, 2>());
        bytes[2] = one(std::integral_constant<int, 1>()), bytes[3] = one(std::integral_constant<int, 3>());
    }
    PHX_INLINE I32 dot(I32 acc, const int16_t* numbers) const {
        for (int i = 0; i < 4; ++i) acc = add(acc, mul(bytes[i], set1(int32_t(numbers[i]))));
        return acc;
    }
};
#endif

// acc + x * w, where acc is: the compiler would have registers take turns, at the price of a copy for each of them.
PHX_INLINE F32 accumulate(F32 acc, F32 x, F32 w) {
#if defined(__AVX2__)
    for (int i = 0; i < PARTS; ++i) asm("vfmadd231ps %2, %1, %0" : "+x"(acc.part[i]) : "x"(x.part[i]), "x"(w.part[i]));
    return acc;
#else
    return fma(x, w, acc);
#endif
}

// The first or the second of two inputs.
template <int HALF, int R, int C>
PHX_INLINE void multiply_half(const float* rows, long stride, const I32 (&weights)[C], F32 (&acc)[R][C]) {
    F32 w[C];
    for (int c = 0; c < C; ++c) {
        w[c] = as_float(HALF == 0 ? shift_left<16>(weights[c]) : bits_and(weights[c], set1(int32_t(0xffff0000))));
    }
    for (int r = 0; r < R; ++r) {
        const F32 x = set1(rows[r * stride + HALF]);
        for (int c = 0; c < C; ++c) acc[r][c] = accumulate(acc[r][c], x, w[c]);
    }
}

template <class T, int R, int C>
PHX_INLINE void multiply(const Kept<T>* rows, long stride, const Vector<T> (&weights)[C], Sum<T> (&acc)[R][C]) {
    if constexpr (std::is_same_v<T, float>) {
        for (int r = 0; r < R; ++r) {
            const F32 x = set1(rows[r * stride]);
            for (int c = 0; c < C; ++c) acc[r][c] = accumulate(acc[r][c], x, weights[c]);
        }
    } else if constexpr (std::is_same_v<T, bf16>) {
        multiply_half<0>(rows, stride, weights, acc);
        multiply_half<1>(rows, stride, weights, acc);
    } else {
        for (int c = 0; c < C; ++c) {
            const Bytes<false> w(weights[c]);
            for (int r = 0; r < R; ++r) acc[r][c] = w.dot(acc[r][c], rows + r * stride);
        }
    }
}

#endif  // __AVX512F__

// The same with vectors that are still in memory.
template <class T, int R, int C>
PHX_INLINE void multiply(const Kept<T>* rows, long stride, const T* const (&weights)[C], Sum<T> (&acc)[R][C]) {
    Vector<T> vectors[C];
    for (int c = 0; c < C; ++c) vectors[c] = load_weights(weights[c]);
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (std::is_same_v<T, bf16>) {
        multiply_half<0>(rows, stride, vectors, acc);
        for (int c = 0; c < C; ++c) {  // read again: there is no register to keep them in
            const T* again = weights[c];
            asm("" : "+r"(again));
            vectors[c] = load_weights(again);
        }
        return multiply_half<1>(rows, stride, vectors, acc);
    }
#endif
    multiply<T>(rows, stride, vectors, acc);
}

// The same for weights in groups of so many bits, whose codes of activations are kept as Codes: multiply_codes, and what a
// group's sums come to in the end.
#if defined(__AVX2__) && !defined(__AVX512F__)

template <int BITS> using Codes = std::conditional_t<BITS == 4, int8_t, int16_t>;

template <int BITS, int R, int C>
PHX_INLINE void multiply_codes(const Codes<BITS>* rows, long stride, const I32 (&weights)[C], I32 (&sums)[R][C]) {
    if constexpr (BITS == 8) return multiply<int8_t>(rows, stride, weights, sums);
    for (int r = 0; r < R; ++r) {
        const __m256i x = (__m256i)spread_word(rows + r * stride).part[0];
        for (int c = 0; c < C; ++c) {
            for (int i = 0; i < PARTS; ++i) {  // 16 products of 15 and 127 at most are sums of 16 bits
                const __m256i pairs = _mm256_maddubs_epi16((__m256i)weights[c].part[i], x);
                sums[r][c].part[i] = (NativeI)_mm256_add_epi16((__m256i)sums[r][c].part[i], pairs);
            }
        }
    }
}
template <int BITS> PHX_INLINE I32 sums_of_group(I32 sums) {
    if constexpr (BITS == 8) return sums;
    PHX_EACH(I32, (NativeI)_mm256_madd_epi16((__m256i)sums.part[i], _mm256_set1_epi16(1)));
}

#else

template <int BITS> using Codes = Kept<int8_t>;

template <int BITS, int R, int C>
PHX_INLINE void multiply_codes(const Codes<BITS>* rows, long stride, const I32 (&weights)[C], I32 (&sums)[R][C]) {
    multiply<int8_t>(rows, stride, weights, sums);
}
template <int BITS> PHX_INLINE I32 sums_of_group(I32 sums) { return sums; }

#endif

// The low and the high half of every byte.
PHX_INLINE I32 low_nibbles(I32 x) { return bits_and(x, set1(0x0f0f0f0f)); }
PHX_INLINE I32 high_nibbles(I32 x) { return bits_and(shift_in_zeros<4>(x), set1(0x0f0f0f0f)); }

// A vector of weights of which only those are stored, from p on, whose bits are set; the others are zero. Reads a whole
// vector.
PHX_INLINE I32 load_set(const bf16* p, uint32_t bits) {
#if defined(__AVX512VBMI2__)
    return _mm512_maskz_expand_epi16(bits, _mm512_loadu_si512(p));
#else
    bf16 values[2 * LANES] = {};
    for (; bits != 0; bits &= bits - 1) values[__builtin_ctz(bits)] = *p++;
    return load(reinterpret_cast<const int32_t*>(values));
#endif
}

// Stores those of 32 weights from p on that are not zero, and says which.
PHX_INLINE uint32_t store_set(bf16* p, const bf16* weights) {
    constexpr bf16 MAGNITUDE = 0x7fff;
#if defined(__AVX512VBMI2__)
    const __m512i all = _mm512_loadu_si512(weights);
    const uint32_t bits = _mm512_test_epi16_mask(all, _mm512_set1_epi16(MAGNITUDE));
    alignas(LINE) bf16 set[2 * LANES];
    _mm512_store_si512(set, _mm512_maskz_compress_epi16(bits, all));
    std::memcpy(p, set, __builtin_popcount(bits) * sizeof(bf16));
    return bits;
#else
    uint32_t bits = 0;
    for (int i = 0; i < 2 * LANES; ++i) {
        if ((weights[i] & MAGNITUDE) == 0) continue;
        bits |= uint32_t(1) << i;
        *p++ = weights[i];
    }
    return bits;
#endif
}

}  // namespace phx
