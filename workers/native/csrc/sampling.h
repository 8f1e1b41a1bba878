// Draws tokens from the logits of a shard of the vocabulary, together with the ranks that have the others.
#pragma once

#include "draw.h"
#include "team.h"

// The C side; see workers/native/drawing.py, which has the same structures.
extern "C" {

// Collects `bytes` from each of the ranks, in their order; 0 when that worked. Not called where there is but one.
struct PhxGather {
    int (*all_gather)(void* self, const void* own, void* all, long bytes);
    void* self;
    long ranks;
};

struct PhxLogits {
    const float* data;  // [count, stride]
    long stride, columns, count;
    const int32_t* token_keys;  // [columns], padded to 16
    long vocab_size;            // of all shards
    int32_t first_id;
};

// ids [count]; draws [count]. Returns 0, or what `all_gather` did.
int phx_draw(phx::Team* team, const PhxLogits* logits, const PhxDraw* draws, const PhxGather* gather, int32_t* ids);

}
