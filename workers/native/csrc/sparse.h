// Sparse panels, read without their zeros and multiplied with them: a product is bound by what it reads.
#pragma once

#include "ahead.h"
#include "pages.h"
#include "weight.h"

namespace phx {

// Whether that is quick here.
#if defined(__AVX512VBMI2__)
constexpr bool SKIPS_ZEROS = true;
#else
constexpr bool SKIPS_ZEROS = false;
#endif

// The vectors of a panel, one after the other.
class SparsePanel {
  public:
    SparsePanel(const Weight& w, long n) : bits_(reinterpret_cast<const uint32_t*>(w.panel(n))),
                                           values_(reinterpret_cast<const bf16*>(bits_ + w.depth / 2)),
                                           ahead_(w.panel(n) + AHEAD), each_(w.panel_bytes() / (w.depth / 2)) {}
    PHX_INLINE I32 next() {
        prefetch(ahead_);
        ahead_ += each_;
        const I32 vector = load_set(values_, *bits_);
        values_ += __builtin_popcount(*bits_++);
        return vector;
    }

  private:
    const uint32_t* bits_;
    const bf16* values_;
    const char* ahead_;
    const long each_;  // bytes of the panel for a vector
};

// Panels n to n + count - 1 as dense ones, in memory of this thread.
inline Weight dense_panels(const Weight& w, long n, long count) {
    thread_local Lines<bf16> room;
    Weight dense = w;
    dense.kept = 0;
    const long size = w.depth * LANES;
    if (long(room.size()) < count * size) room.resize(count * size);
    dense.data = reinterpret_cast<char*>(room.data()) - n * dense.panel_bytes();
    for (long c = 0; c < count; ++c) {
        SparsePanel panel(w, n + c);
        for (long at = c * size; at < (c + 1) * size; at += 2 * LANES) {
            store(reinterpret_cast<int32_t*>(room.data() + at), panel.next());
        }
    }
    return dense;
}

}  // namespace phx
