// The matrix registers of Intel's AMX: eight tiles of up to 16 rows of 64 bytes.
#pragma once

#include <array>

#include "simd.h"

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace phx::amx {

constexpr int HEIGHT = 16;  // rows of a tile
constexpr long FEWEST_ROWS = 5;  // of a batch that they are quicker for

#if defined(__AMX_BF16__)

constexpr bool COMPILED = true;

// Whether this process may use them: the kernel makes room for 8 KiB more of a thread's state only for those who ask.
// It refuses, for one, where a thread's stack for signals is too small for that.
inline bool usable() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    static const bool allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
    return allowed;
}

struct Shape {
    long rows, bytes;
};

// The shapes of this thread's tiles, while it lives.
class Shapes {
  public:
    explicit Shapes(const std::array<Shape, 8>& tiles) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } all;
        for (int tile = 0; tile < 8; ++tile) {
            all.rows[tile] = uint8_t(tiles[tile].rows);
            all.row_bytes[tile] = uint16_t(tiles[tile].rows > 0 ? tiles[tile].bytes : 0);
        }
        asm volatile("" ::"r"(&all) : "memory");  // GCC 12 believes that only the first eight bytes are read
        _tile_loadconfig(&all);
    }
    Shapes(const Shapes&) = delete;
    ~Shapes() { _tile_release(); }
};

#else

constexpr bool COMPILED = false;
constexpr bool usable() { return false; }

#endif

}  // namespace phx::amx
