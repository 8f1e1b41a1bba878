// The matrix registers of Intel's AMX: eight tiles of up to 16 rows of 64 bytes.
#pragma once

#include "simd.h"

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace phx::amx {

constexpr int HEIGHT = 16;  // rows of a tile
// Below that, rows take as long as reading the weights either way.
constexpr long FEWEST_ROWS = 8;

#if defined(__AMX_BF16__)

// Whether this process may use them: the kernel makes room for 8 KiB more of a thread's state only for those who ask.
// It refuses, for one, where a thread's stack for signals is too small for that.
inline bool usable() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    static const bool allowed = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
    return allowed;
}

// The shapes of this thread's tiles while it lives: 0 to 3 are sums (two tiles of rows by two panels), 4 and 5 the
// activations' two tiles of rows, 6 and 7 the weights of two panels.
class Shapes {
  public:
    Shapes(long first_rows, long second_rows) {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        const long rows[8] = {first_rows, first_rows, second_rows, second_rows, first_rows, second_rows, HEIGHT, HEIGHT};
        for (int tile = 0; tile < 8; ++tile) {
            shapes.rows[tile] = uint8_t(rows[tile]);
            shapes.row_bytes[tile] = rows[tile] > 0 ? LINE : 0;
        }
        asm volatile("" ::: "memory");  // GCC 12 believes that only the first eight bytes are read
        _tile_loadconfig(&shapes);
    }
    Shapes(const Shapes&) = delete;
    ~Shapes() { _tile_release(); }
};

#else

constexpr bool usable() { return false; }

#endif

}  // namespace phx::amx
