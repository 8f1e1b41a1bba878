// The quickest plain ways to read memory, for benchmarks/limits.py: xor all 64-bit words of a block.
#include <stddef.h>
#include <stdint.h>

// `streams` places are read in turns, each `bytes / streams` long; `ahead` bytes are asked for beforehand (0: none).
uint64_t read_memory(const uint64_t *block, size_t bytes, int streams, size_t ahead) {
    size_t words = bytes / 8 / streams;
    uint64_t sums[32] = {0};
    for (size_t word = 0; word + 32 <= words; word += 32)
        for (int stream = 0; stream < streams; stream++) {
            const uint64_t *at = block + stream * words + word;
            if (ahead)
                for (int line = 0; line < 4; line++) __builtin_prefetch((const char *)at + ahead + 64 * line, 0, 3);
            for (int i = 0; i < 32; i++) sums[i] ^= at[i];
        }
    uint64_t sum = 0;
    for (int i = 0; i < 32; i++) sum ^= sums[i];
    return sum;
}
