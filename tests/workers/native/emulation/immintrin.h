// The AVX-512 and AMX intrinsics that csrc/ uses, in plain C++: its code for them can be tested on any processor.
//
// They mean what Intel's Intrinsics Guide says, without regard to speed; where a result is rounded, its last bit may
// differ (sums of products of bf16, 2^x, 1 / x).
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64), aligned(64)));
typedef int32_t __m512i __attribute__((vector_size(64), aligned(64)));
typedef int32_t __m256i __attribute__((vector_size(32), aligned(32)));
typedef int32_t __m128i __attribute__((vector_size(16), aligned(16)));
typedef int16_t __m256bh __attribute__((vector_size(32)));
typedef int16_t __m512bh __attribute__((vector_size(64)));
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;

enum { _CMP_GT_OQ = 30, _MM_FROUND_TO_NEG_INF = 1, _MM_FROUND_NO_EXC = 8 };

namespace emulation {

template <class To, class From> inline To as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}
template <class V> inline V load(const void* p) {
    V x;
    std::memcpy(&x, p, sizeof(x));
    return x;
}
template <class V> inline void store(void* p, V x) { std::memcpy(p, &x, sizeof(x)); }

template <class V, class Lane> inline V lanes(Lane lane) {
    V x;
    for (int i = 0; i < 16; ++i) x[i] = lane(i);
    return x;
}
struct Bytes {
    uint8_t of[64];
};
struct Words {
    int16_t of[32];
};

inline float widen(uint16_t x) { return as<float>(uint32_t(x) << 16); }
inline uint16_t to_bf16(float x) {
    const uint32_t bits = as<uint32_t>(x);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace emulation

inline __m512 _mm512_set1_ps(float x) { return emulation::lanes<__m512>([=](int) { return x; }); }
inline __m512i _mm512_set1_epi32(int x) { return emulation::lanes<__m512i>([=](int) { return x; }); }
inline __m512i _mm512_set1_epi16(short x) { return _mm512_set1_epi32(int(uint32_t(uint16_t(x)) * 0x10001u)); }
inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k, int l, int m,
                                 int n, int o, int p) {
    return __m512i{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
inline __m512 _mm512_loadu_ps(const void* p) { return emulation::load<__m512>(p); }
inline __m512i _mm512_loadu_si512(const void* p) { return emulation::load<__m512i>(p); }
inline __m256i _mm256_loadu_si256(const __m256i* p) { return emulation::load<__m256i>(p); }
inline void _mm512_storeu_ps(void* p, __m512 x) { emulation::store(p, x); }
inline void _mm512_storeu_si512(void* p, __m512i x) { emulation::store(p, x); }
inline void _mm512_store_si512(void* p, __m512i x) { emulation::store(p, x); }
inline void _mm256_storeu_si256(__m256i* p, __m256i x) { emulation::store(p, x); }
inline void _mm_storeu_si128(__m128i* p, __m128i x) { emulation::store(p, x); }
inline __m512 _mm512_castsi512_ps(__m512i a) { return __m512(a); }
inline __m512i _mm512_castps_si512(__m512 a) { return __m512i(a); }

inline __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }
inline __m512 _mm512_min_ps(__m512 a, __m512 b) { return a < b ? a : b; }
inline __m512 _mm512_rcp14_ps(__m512 a) { return 1.0f / a; }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return emulation::lanes<__m512>([&](int i) { return std::fma(a[i], b[i], c[i]); });
}
inline __m512 _mm512_reduce_ps(__m512 a, int) {  // less the whole number below
    return emulation::lanes<__m512>([&](int i) { return std::isinf(a[i]) ? 0.0f : a[i] - std::floor(a[i]); });
}
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
    return emulation::lanes<__m512>(
        [&](int i) { return std::isinf(b[i]) ? 0.0f : std::ldexp(a[i], int(std::floor(b[i]))); });
}
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int) {  // a > b
    unsigned mask = 0;
    for (int i = 0; i < 16; ++i) mask |= unsigned(a[i] > b[i]) << i;
    return __mmask16(mask);
}
inline __m512 _mm512_mask_blend_ps(__mmask16 mask, __m512 a, __m512 b) {
    return emulation::lanes<__m512>([&](int i) { return mask >> i & 1 ? b[i] : a[i]; });
}
inline __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
    return emulation::lanes<__m512>([&](int i) { return (i % 2 ? b : a)[i / 4 * 4 + i % 4 / 2]; });
}
inline __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
    return emulation::lanes<__m512>([&](int i) { return (i % 2 ? b : a)[i / 4 * 4 + i % 4 / 2 + 2]; });
}
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int parts) {
    return emulation::lanes<__m512>([&](int i) { return (i < 8 ? a : b)[(parts >> i / 4 * 2 & 3) * 4 + i % 4]; });
}
inline __m512 _mm512_permutexvar_ps(__m512i places, __m512 a) {
    return emulation::lanes<__m512>([&](int i) { return a[places[i] & 15]; });
}
inline float _mm512_reduce_add_ps(__m512 a) {
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) a[i] += a[i + width];
    return a[0];
}
inline float _mm512_reduce_max_ps(__m512 a) {
    for (int i = 1; i < 16; ++i) a[0] = a[i] > a[0] ? a[i] : a[0];
    return a[0];
}

inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
    return emulation::lanes<__m512i>([&](int i) { return int(uint32_t(a[i]) + uint32_t(b[i])); });
}
inline __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
    return emulation::lanes<__m512i>([&](int i) { return int(uint32_t(a[i]) * uint32_t(b[i])); });
}
inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }
inline __m512i _mm512_slli_epi32(__m512i a, int n) {
    return emulation::lanes<__m512i>([&](int i) { return int(uint32_t(a[i]) << n); });
}
inline __m512i _mm512_srai_epi32(__m512i a, int n) { return a >> n; }
inline __m512i _mm512_srli_epi32(__m512i a, int n) {
    return emulation::lanes<__m512i>([&](int i) { return int(uint32_t(a[i]) >> n); });
}
inline int _mm512_reduce_add_epi32(__m512i a) {
    uint32_t total = 0;
    for (int i = 0; i < 16; ++i) total += uint32_t(a[i]);
    return int(total);
}
inline __m512 _mm512_cvtepi32_ps(__m512i a) {
    return emulation::lanes<__m512>([&](int i) { return float(a[i]); });
}
inline __m512i _mm512_cvtps_epi32(__m512 a) {
    return emulation::lanes<__m512i>([&](int i) { return int(std::nearbyint(a[i])); });
}
inline __m128i _mm512_cvtepi32_epi8(__m512i a) {
    int8_t bytes[16];
    for (int i = 0; i < 16; ++i) bytes[i] = int8_t(a[i]);
    return emulation::load<__m128i>(bytes);
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
    _Float16 halves[16];
    std::memcpy(halves, &a, sizeof(halves));
    return emulation::lanes<__m512>([&](int i) { return float(halves[i]); });
}
inline __m256bh _mm512_cvtneps_pbh(__m512 a) {
    return emulation::lanes<__m256bh>([&](int i) { return int16_t(emulation::to_bf16(a[i])); });
}
inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
    return emulation::lanes<__m512>([&](int i) {
        const float first = emulation::widen(a[2 * i]) * emulation::widen(b[2 * i]);
        return sums[i] + emulation::widen(a[2 * i + 1]) * emulation::widen(b[2 * i + 1]) + first;
    });
}
inline __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
    const auto left = emulation::as<emulation::Bytes>(a), right = emulation::as<emulation::Bytes>(b);
    return emulation::lanes<__m512i>([&](int i) {
        uint32_t sum = uint32_t(sums[i]);
        for (int k = 4 * i; k < 4 * i + 4; ++k) sum += uint32_t(int(left.of[k]) * int8_t(right.of[k]));
        return int(sum);
    });
}
inline __m512i _mm512_maskz_expand_epi16(__mmask32 mask, __m512i a) {
    const auto from = emulation::as<emulation::Words>(a);
    emulation::Words to = {};
    for (int i = 0, next = 0; i < 32; ++i)
        if (mask >> i & 1) to.of[i] = from.of[next++];
    return emulation::as<__m512i>(to);
}
inline __m512i _mm512_maskz_compress_epi16(__mmask32 mask, __m512i a) {
    const auto from = emulation::as<emulation::Words>(a);
    emulation::Words to = {};
    for (int i = 0, next = 0; i < 32; ++i)
        if (mask >> i & 1) to.of[next++] = from.of[i];
    return emulation::as<__m512i>(to);
}
inline __mmask32 _mm512_test_epi16_mask(__m512i a, __m512i b) {
    const auto both = emulation::as<emulation::Words>(a & b);
    __mmask32 mask = 0;
    for (int i = 0; i < 32; ++i) mask |= __mmask32(both.of[i] != 0) << i;
    return mask;
}
inline void _mm_pause() {}

#if defined(__AMX_BF16__)

#define syscall(...) 0L  // the kernel lets the process have them

namespace emulation {

struct Tiles {
    uint8_t rows[8];
    uint16_t bytes[8];  // of a row
    uint8_t data[8][16][64];
};
inline Tiles& tiles() {
    static thread_local Tiles all;
    return all;
}
// Sums of C, which are of T, + what `product` makes of four bytes of A and of B.
template <class T, class Product> void multiply(int c, int a, int b, Product product) {
    Tiles& t = tiles();
    for (int m = 0; m < t.rows[c]; ++m) {
        for (int n = 0; n < t.bytes[c]; n += 4) {
            T sum = load<T>(t.data[c][m] + n);
            for (int k = 0; k < t.bytes[a]; k += 4) sum += product(t.data[a][m] + k, t.data[b][k / 4] + n);
            store(t.data[c][m] + n, sum);
        }
    }
}

}  // namespace emulation

inline void _tile_loadconfig(const void* p) {
    const char* from = static_cast<const char*>(p);
    emulation::tiles() = {};
    std::memcpy(emulation::tiles().bytes, from + 16, 16);
    std::memcpy(emulation::tiles().rows, from + 48, 8);
}
inline void _tile_release() { emulation::tiles() = {}; }
inline void _tile_zero(int tile) { std::memset(emulation::tiles().data[tile], 0, 1024); }
inline void _tile_loadd(int tile, const void* p, long stride) {
    auto& t = emulation::tiles();
    for (int r = 0; r < t.rows[tile]; ++r) std::memcpy(t.data[tile][r], static_cast<const char*>(p) + r * stride, t.bytes[tile]);
}
inline void _tile_stored(int tile, void* p, long stride) {
    auto& t = emulation::tiles();
    for (int r = 0; r < t.rows[tile]; ++r) std::memcpy(static_cast<char*>(p) + r * stride, t.data[tile][r], t.bytes[tile]);
}
inline void _tile_dpbf16ps(int c, int a, int b) {
    emulation::multiply<float>(c, a, b, [](const uint8_t* x, const uint8_t* y) {
        float sum = 0;
        for (int i = 0; i < 4; i += 2) {
            sum += emulation::widen(emulation::load<uint16_t>(x + i)) * emulation::widen(emulation::load<uint16_t>(y + i));
        }
        return sum;
    });
}
inline void _tile_dpbsud(int c, int a, int b) {
    emulation::multiply<int32_t>(c, a, b, [](const uint8_t* x, const uint8_t* y) {
        int32_t sum = 0;
        for (int i = 0; i < 4; ++i) sum += int(int8_t(x[i])) * int(y[i]);
        return sum;
    });
}

#endif
