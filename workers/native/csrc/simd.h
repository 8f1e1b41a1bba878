// Sixteen lanes of float32 or int32, whatever the processor's registers hold, and the products built on them.
//
// With AVX-512 a vector is one register. Elsewhere it is an array of the compiler's own vectors, which become two AVX
// registers or four NEON ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says both of its own undefined vectors
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace phx {

using bf16 = uint16_t;  // the upper half of a float32
using f16 = uint16_t;   // IEEE half

constexpr int LANES = 16;
constexpr long LINE = 64;  // bytes of a cache line

#define PHX_INLINE inline __attribute__((always_inline))
#define PHX_APART __attribute__((noinline))  // compiled once for all that becomes of its results

#if defined(__AVX512F__)

using F32 = __m512;
using I32 = __m512i;

PHX_INLINE F32 set1(float x) { return _mm512_set1_ps(x); }
PHX_INLINE F32 load(const float* p) { return _mm512_loadu_ps(p); }
PHX_INLINE void store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
PHX_INLINE F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
PHX_INLINE F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
PHX_INLINE F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
PHX_INLINE F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
PHX_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
PHX_INLINE F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
PHX_INLINE F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
PHX_INLINE F32 largest_of(const F32 (&x)[LANES]) {  // of each of 16
    __m512 eight[8], four[4], two[2];
    for (int i = 0; i < 8; ++i) {
        eight[i] = max(_mm512_unpacklo_ps(x[i], x[i + 8]), _mm512_unpackhi_ps(x[i], x[i + 8]));
    }
    for (int i = 0; i < 4; ++i) {
        four[i] = max(_mm512_unpacklo_ps(eight[i], eight[i + 4]), _mm512_unpackhi_ps(eight[i], eight[i + 4]));
    }
    for (int i = 0; i < 2; ++i) {
        two[i] = max(_mm512_shuffle_f32x4(four[i], four[i + 2], 0x44), _mm512_shuffle_f32x4(four[i], four[i + 2], 0xee));
    }
    const __m512 one = max(_mm512_shuffle_f32x4(two[0], two[1], 0x88), _mm512_shuffle_f32x4(two[0], two[1], 0xdd));
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15), one);
}
PHX_INLINE float sum(F32 a) { return _mm512_reduce_add_ps(a); }
PHX_INLINE float largest(F32 a) { return _mm512_reduce_max_ps(a); }
PHX_INLINE bool any_above(F32 a, float limit) { return _mm512_cmp_ps_mask(a, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0; }
PHX_INLINE F32 where_above(F32 a, F32 limit, F32 then, F32 otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, limit, _CMP_GT_OQ), otherwise, then);
}
PHX_INLINE I32 set1(int32_t x) { return _mm512_set1_epi32(x); }
PHX_INLINE I32 load(const int32_t* p) { return _mm512_loadu_si512(p); }
PHX_INLINE void store(int32_t* p, I32 x) { _mm512_storeu_si512(p, x); }
PHX_INLINE I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
PHX_INLINE I32 mul(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }  // the lower halves
PHX_INLINE I32 bits_and(I32 a, I32 b) { return _mm512_and_si512(a, b); }
PHX_INLINE I32 bits_xor(I32 a, I32 b) { return _mm512_xor_si512(a, b); }
PHX_INLINE F32 to_float(I32 x) { return _mm512_cvtepi32_ps(x); }
PHX_INLINE I32 to_int(F32 x) { return _mm512_cvtps_epi32(x); }  // to nearest
PHX_INLINE int32_t sum(I32 a) { return _mm512_reduce_add_epi32(a); }
PHX_INLINE void store_bytes(int8_t* p, I32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x)); }
template <int N> PHX_INLINE I32 shift_left(I32 x) { return _mm512_slli_epi32(x, N); }
template <int N> PHX_INLINE I32 shift_right(I32 x) { return _mm512_srai_epi32(x, N); }  // keeps the sign
template <int N> PHX_INLINE I32 shift_in_zeros(I32 x) { return _mm512_srli_epi32(x, N); }  // to the right
PHX_INLINE F32 as_float(I32 x) { return _mm512_castsi512_ps(x); }
PHX_INLINE I32 as_int(F32 x) { return _mm512_castps_si512(x); }
PHX_INLINE F32 load_f16(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

#else

#if defined(__AVX2__)
constexpr int REGISTER = 8;
#else
constexpr int REGISTER = 4;
#endif
constexpr int PARTS = LANES / REGISTER;
typedef float NativeF __attribute__((vector_size(4 * REGISTER), aligned(4), may_alias));
typedef int32_t NativeI __attribute__((vector_size(4 * REGISTER), aligned(4), may_alias));
typedef uint32_t NativeU __attribute__((vector_size(4 * REGISTER), aligned(4), may_alias));

struct F32 {
    NativeF part[PARTS];
};
struct I32 {
    NativeI part[PARTS];
};

#define PHX_EACH(type, expression)                  \
    type result;                                    \
    for (int i = 0; i < PARTS; ++i) result.part[i] = expression; \
    return result

PHX_INLINE F32 set1(float x) { PHX_EACH(F32, x - NativeF{}); }
PHX_INLINE F32 load(const float* p) { PHX_EACH(F32, *reinterpret_cast<const NativeF*>(p + i * REGISTER)); }
PHX_INLINE void store(float* p, F32 x) {
    for (int i = 0; i < PARTS; ++i) *reinterpret_cast<NativeF*>(p + i * REGISTER) = x.part[i];
}
PHX_INLINE F32 add(F32 a, F32 b) { PHX_EACH(F32, a.part[i] + b.part[i]); }
PHX_INLINE F32 sub(F32 a, F32 b) { PHX_EACH(F32, a.part[i] - b.part[i]); }
PHX_INLINE F32 mul(F32 a, F32 b) { PHX_EACH(F32, a.part[i] * b.part[i]); }
PHX_INLINE F32 div(F32 a, F32 b) { PHX_EACH(F32, a.part[i] / b.part[i]); }
PHX_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(__AVX2__)
    PHX_EACH(F32, (NativeF)_mm256_fmadd_ps((__m256)a.part[i], (__m256)b.part[i], (__m256)c.part[i]));
#else
    PHX_EACH(F32, a.part[i] * b.part[i] + c.part[i]);
#endif
}
PHX_INLINE NativeF larger(NativeF a, NativeF b) {
#if defined(__AVX2__)
    return (NativeF)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}
PHX_INLINE NativeF smaller(NativeF a, NativeF b) {
#if defined(__AVX2__)
    return (NativeF)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}
PHX_INLINE F32 max(F32 a, F32 b) { PHX_EACH(F32, larger(a.part[i], b.part[i])); }
PHX_INLINE F32 min(F32 a, F32 b) { PHX_EACH(F32, smaller(a.part[i], b.part[i])); }

// One value from all of a vector's, which `join` makes one of two.
template <class Native, class Join> PHX_INLINE auto joined(const Native (&parts)[PARTS], Join join) {
    Native all = parts[0];
    for (int i = 1; i < PARTS; ++i) all = join(all, parts[i]);
#if defined(__AVX2__)
    all = join(all, (Native)_mm256_permute2f128_ps((__m256)all, (__m256)all, 1));
    all = join(all, (Native)_mm256_permute_ps((__m256)all, 0x4e));
    all = join(all, (Native)_mm256_permute_ps((__m256)all, 0xb1));
#else
    for (int width = REGISTER / 2; width > 0; width /= 2) {
        Native other = all;
        for (int i = 0; i < width; ++i) other[i] = all[i + width];
        all = join(all, other);
    }
#endif
    return all[0];
}
PHX_INLINE float sum(F32 a) {
    return joined(a.part, [](NativeF x, NativeF y) { return x + y; });
}
PHX_INLINE float largest(F32 a) { return joined(a.part, larger); }
PHX_INLINE F32 largest_of(const F32 (&x)[LANES]) {  // of each of 16
    float all[LANES];
    for (int i = 0; i < LANES; ++i) all[i] = largest(x[i]);
    return load(all);
}
PHX_INLINE bool any_above(F32 a, float limit) {
    NativeI above = {};
    for (int i = 0; i < PARTS; ++i) above |= a.part[i] > limit - NativeF{};
#if defined(__AVX2__)
    return _mm256_movemask_ps((__m256)above) != 0;
#else
    uint64_t halves[2];
    std::memcpy(halves, &above, sizeof(halves));
    return (halves[0] | halves[1]) != 0;
#endif
}
PHX_INLINE F32 where_above(F32 a, F32 limit, F32 then, F32 otherwise) {
    PHX_EACH(F32, a.part[i] > limit.part[i] ? then.part[i] : otherwise.part[i]);
}
PHX_INLINE I32 set1(int32_t x) { PHX_EACH(I32, x - NativeI{}); }
PHX_INLINE I32 load(const int32_t* p) { PHX_EACH(I32, *reinterpret_cast<const NativeI*>(p + i * REGISTER)); }
PHX_INLINE void store(int32_t* p, I32 x) {
    for (int i = 0; i < PARTS; ++i) *reinterpret_cast<NativeI*>(p + i * REGISTER) = x.part[i];
}
PHX_INLINE I32 add(I32 a, I32 b) { PHX_EACH(I32, (NativeI)((NativeU)a.part[i] + (NativeU)b.part[i])); }
PHX_INLINE I32 mul(I32 a, I32 b) { PHX_EACH(I32, (NativeI)((NativeU)a.part[i] * (NativeU)b.part[i])); }
PHX_INLINE I32 bits_and(I32 a, I32 b) { PHX_EACH(I32, a.part[i] & b.part[i]); }
PHX_INLINE I32 bits_xor(I32 a, I32 b) { PHX_EACH(I32, a.part[i] ^ b.part[i]); }
PHX_INLINE F32 to_float(I32 x) { PHX_EACH(F32, __builtin_convertvector(x.part[i], NativeF)); }
PHX_INLINE I32 to_int(F32 x) {  // to nearest, for |x| < 2^22
    const NativeF magic = 12582912.0f - NativeF{};
    PHX_EACH(I32, (NativeI)(x.part[i] + magic) - (NativeI)magic);
}
PHX_INLINE int32_t sum(I32 a) {
    return joined(a.part, [](NativeI x, NativeI y) { return (NativeI)((NativeU)x + (NativeU)y); });
}
#if defined(__AVX2__)
// The lowest bits of each, in 16.
PHX_INLINE __m256i words(I32 x, int bits) {
    const __m256i lowest = _mm256_set1_epi32((1 << bits) - 1);
    const __m256i a = _mm256_and_si256((__m256i)x.part[0], lowest), b = _mm256_and_si256((__m256i)x.part[1], lowest);
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
}
#endif
// The lowest 16 bits of each, or the lowest 8.
PHX_INLINE void store_words(uint16_t* p, I32 x) {
#if defined(__AVX2__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words(x, 16));
#else
    for (int i = 0; i < LANES; ++i) p[i] = uint16_t(x.part[i / REGISTER][i % REGISTER]);
#endif
}
PHX_INLINE void store_bytes(int8_t* p, I32 x) {
#if defined(__AVX2__)
    const __m256i all = words(x, 8);
    const __m128i low = _mm256_castsi256_si128(all), high = _mm256_extracti128_si256(all, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(low, high));
#else
    for (int i = 0; i < LANES; ++i) p[i] = int8_t(x.part[i / REGISTER][i % REGISTER]);
#endif
}
template <int N> PHX_INLINE I32 shift_left(I32 x) { PHX_EACH(I32, x.part[i] << N); }
template <int N> PHX_INLINE I32 shift_right(I32 x) { PHX_EACH(I32, x.part[i] >> N); }
template <int N> PHX_INLINE I32 shift_in_zeros(I32 x) { PHX_EACH(I32, (NativeI)((NativeU)x.part[i] >> N)); }
PHX_INLINE F32 as_float(I32 x) { PHX_EACH(F32, (NativeF)x.part[i]); }
PHX_INLINE I32 as_int(F32 x) { PHX_EACH(I32, (NativeI)x.part[i]); }

inline float f16_to_float(f16 h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    float value;
    if (exponent == 0) {
        value = float(mantissa) * 5.9604644775390625e-08f;  // 2^-24
    } else {
        uint32_t bits = exponent == 31 ? 0x7f800000u | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
        std::memcpy(&value, &bits, 4);
    }
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}
PHX_INLINE F32 load_f16(const f16* p) {
#if defined(__F16C__)
    PHX_EACH(F32, (NativeF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * REGISTER))));
#else
    float wide[LANES];
    for (int i = 0; i < LANES; ++i) wide[i] = f16_to_float(p[i]);
    return load(wide);
#endif
}

#endif  // __AVX512F__

PHX_INLINE F32 zero() { return set1(0.0f); }

PHX_INLINE float to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
// The upper halves are those of the nearest bf16, of two as near the even one.
PHX_INLINE I32 rounded_bits(F32 x) {
    const I32 bits = as_int(x), odd = bits_and(shift_in_zeros<16>(bits), set1(1));
    return add(bits, add(odd, set1(0x7fff)));
}

PHX_INLINE void store_as(float* p, F32 x) { store(p, x); }
PHX_INLINE void store_as(bf16* p, F32 x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
#else
    store_words(p, shift_in_zeros<16>(rounded_bits(x)));
#endif
}
PHX_INLINE float widen(float x) { return x; }
PHX_INLINE float widen(bf16 x) { return to_float(x); }

// 2^x for x <= 127, -infinity included, by the polynomial in what x is above a whole number whose largest relative error
// is least: 8e-8 with five terms after the first, 9e-5 with three.
template <int TERMS = 5> PHX_INLINE F32 exp2(F32 x) {
    static_assert(TERMS == 5 || TERMS == 3);
    constexpr float five[] = {1.0f, 0.69315131f, 0.24016446f, 0.05579989f, 0.00901706f, 0.00186712f};
    constexpr float three[] = {1.0f, 0.69511627f, 0.2276473f, 0.07706493f};
    const float* terms = TERMS == 5 ? five : three;
#if defined(__AVX512F__)
    const F32 above = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    x = max(x, set1(-126.0f));
    const I32 whole = to_int(sub(x, set1(0.5f)));
    const F32 above = sub(x, to_float(whole));
#endif
    F32 p = set1(terms[TERMS]);
    for (int i = TERMS - 1; i >= 0; --i) p = fma(p, above, set1(terms[i]));
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, x);  // by the whole number below it
#else
    return as_float(add(as_int(p), shift_left<23>(whole)));
#endif
}

constexpr float LOG2_E = 1.44269504f;
// As many terms as the type that the result is rounded to can tell from more.
template <class T> constexpr int EXP_TERMS = sizeof(T) == 4 ? 5 : 3;

// 1 / x to about one unit in the last place, for x whose square is finite.
PHX_INLINE F32 reciprocal(F32 x) {
#if defined(__AVX512F__)
    const F32 guess = _mm512_rcp14_ps(x);
    return mul(guess, sub(set1(2.0f), mul(x, guess)));
#else
    return div(set1(1.0f), x);
#endif
}

template <int TERMS> PHX_INLINE F32 silu(F32 x) {
    return mul(x, reciprocal(add(set1(1.0f), exp2<TERMS>(min(mul(x, set1(-LOG2_E)), set1(63.0f))))));
}

// The first `count` of 16 values; the others are left alone.
template <class T> PHX_INLINE void store_some(T* p, F32 x, long count) {
    if (count >= LANES) return store_as(p, x);
    T all[LANES];
    store_as(all, x);
    for (long i = 0; i < count; ++i) p[i] = all[i];
}

PHX_INLINE F32 load_some(const float* p, long count) {  // the others are zero
    if (count >= LANES) return load(p);
    float all[LANES] = {};
    for (long i = 0; i < count; ++i) all[i] = p[i];
    return load(all);
}

PHX_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

constexpr long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace phx
