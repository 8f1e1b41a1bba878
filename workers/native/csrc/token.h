// The order of tokens by their logits; equal ones are in that of their ids.
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

extern "C" {

struct PhxToken {
    float logit;
    int32_t id;
};

}

namespace phx {

constexpr float NO_LOGIT = -std::numeric_limits<float>::infinity();

inline bool before(const PhxToken& a, const PhxToken& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Which of a shard's tokens come before `end`: those with logits above a limit, which is less for lower ids.
class Before {
  public:
    Before(const PhxToken& end, int32_t first_id)
        : column_(end.id - first_id), limit_(end.logit), lower_(std::nextafter(end.logit, NO_LOGIT)) {}

    // For the columns from n on.
    PHX_INLINE F32 limits(long n) const {
        if (n + LANES <= column_) return set1(lower_);
        if (n >= column_) return set1(limit_);
        float lanes[LANES];
        for (int i = 0; i < LANES; ++i) lanes[i] = n + i < column_ ? lower_ : limit_;
        return load(lanes);
    }

  private:
    long column_;
    float limit_, lower_;
};

// Calls work(n, F32) for the columns from `begin` to `end`, 16 at a time; what the last ones lack is -inf.
template <class Work> PHX_INLINE void each_vector(const float* logits, long begin, long end, Work work) {
    long n = begin;
    for (; n + LANES <= end; n += LANES) work(n, load(logits + n));
    if (n == end) return;
    float last[LANES];
    for (int i = 0; i < LANES; ++i) last[i] = n + i < end ? logits[n + i] : NO_LOGIT;
    work(n, load(last));
}

}  // namespace phx
