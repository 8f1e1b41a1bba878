// The quickest multiplications and additions on registers alone, for benchmarks/limits.py: what no product of matrices can
// exceed. Every function runs `times` times through some chains of dependent sums, enough to keep all units busy.
#include <stddef.h>
#include <stdint.h>

#define CHAINS 12

#if defined(__AVX512F__)
#define BYTES 64
#else
#define BYTES 32
#endif
typedef float floats __attribute__((vector_size(BYTES)));
typedef int32_t ints __attribute__((vector_size(BYTES)));

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Operations that one pass through a function takes: two for a multiplication and the addition after it.
size_t float_operations(void) { return CHAINS * 2 * BYTES / 4; }

float multiply_floats(size_t times) {
    floats sum[CHAINS], factor = {0}, term = {0};
    for (int lane = 0; lane < BYTES / 4; lane++) factor[lane] = 0.5f, term[lane] = 1.0f;
    for (int i = 0; i < CHAINS; i++) sum[i] = term;
    for (size_t n = 0; n < times; n++)
        for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * factor + term;
    float total = 0;
    for (int i = 0; i < CHAINS; i++) total += sum[i][0];
    return total;
}

// Exact sums of products of bytes: with VNNI four to a lane in one instruction, with AVX2 pairs in 16 bits and an addition.
#if defined(__AVX512VNNI__)
size_t byte_operations(void) { return CHAINS * 2 * 64; }
static ints add_products(ints sum, ints bytes) {
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)sum, (__m512i)bytes);
}
#elif defined(__AVX2__)
size_t byte_operations(void) { return CHAINS * 2 * 16; }
static ints add_products(ints sum, ints bytes) {
    return (ints)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)sum, (__m256i)bytes));
}
#else
size_t byte_operations(void) { return 0; }
static ints add_products(ints sum, ints bytes) { return sum + bytes; }
#endif

int32_t multiply_bytes(size_t times) {
    ints sum[CHAINS], bytes;
    for (int lane = 0; lane < BYTES / 4; lane++) bytes[lane] = 0x00030001 + lane;
    for (int i = 0; i < CHAINS; i++) sum[i] = bytes + i;
    for (size_t n = 0; n < times; n++)
        for (int i = 0; i < CHAINS; i++) sum[i] = add_products(sum[i], bytes);
    int32_t total = 0;
    for (int i = 0; i < CHAINS; i++) total += sum[i][0];
    return total;
}
