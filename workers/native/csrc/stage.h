// One stage of a rank: its layers from the embedding or the hidden states before it to hidden states or logits.
#pragma once

#include "draw.h"
#include "team.h"
#include "weight.h"

// The C side; see workers/native/stage.py, which has the same structures.
extern "C" {

struct PhxStage;

// Sums `count` floats over the ranks of the stage, in place; 0 when that worked.
struct PhxReducer {
    int (*all_reduce)(void* self, float* x, long count);
    void* self;
};

struct PhxShape {
    long hidden, head_dim, heads, kv_heads, mlp;  // this rank's own
    long max_tokens, max_sequences, max_blocks, kv_blocks, block_size;
    long ranks;                 // of the stage
    long vocab_start, vocab;    // rows of the embedding and the head
    int float32;                // activations in float32 instead of bf16, and the cache
    int int8_cache;             // keys and values in 8 bits instead of either
    float eps;
    const float *cos, *sin;     // [positions, head_dim / 2]
    const int* query_heads;     // [kv_heads]: how many query heads read each
    const int32_t* token_keys;  // [vocab], padded to 16: see draw.h
    PhxReducer reducer;
    phx::Team* team;            // the caller's, as long as the stage lives
};

// Norm weights are float32 and stay the caller's, as do the weights. Null: not there.
struct PhxLayer {
    const float *attention_norm, *query_norm, *key_norm, *mlp_norm;
    const phx::Weight *qkv, *out, *gate_up, *down;
    const float* qkv_bias;
    long window;
};

enum { SCREEN_PARTS = 3 };

// A copy of the head in fewer bits, or null: see screen.h.
struct PhxScreen {
    const phx::Weight* copy;
    const float* turn;         // [inputs of the copy + 1, hidden, padded to 16], the last of them what all rows have in common;
                               // or null
    float common;              // its length
    long ends[SCREEN_PARTS];   // of parts of the copy's inputs, in whole groups
    const float* lost;         // [SCREEN_PARTS][vocab, padded to 16]: of weights w and their copy c, |w - c| of a part
    float kept[SCREEN_PARTS];  // no |c| is more than this times what `lost` says
};

struct PhxStep {
    const int32_t* rows;     // [sequences, 4]: slot, position, tokens, after how many of the last one is sampled
    long sequences;
    const int32_t* updates;  // [updates_count, 3]: slot, index, block
    long updates_count;
    const int32_t* tokens;   // [tokens_count]
    long tokens_count;
    const float* hidden_in;  // [tokens, hidden], or null on the first stage
    float* hidden_out;       // the same, or null on the last stage
    float* logits;           // [samples, logits_stride], or null
    long logits_stride;
    const PhxDraw* draws;    // [samples]: instead of `logits`, this shard's best scores and their ids
    float* best_scores;      // [samples]
    int32_t* best_ids;
    long layers;             // so many of the first
};

PhxStage* phx_stage_new(const PhxShape* shape, const PhxLayer* layers, long count, const phx::Weight* embedding,
                        const float* norm, const phx::Weight* head, const PhxScreen* screen);
void phx_stage_free(PhxStage* stage);
// 0, or what the reducer returned.
int phx_stage_run(PhxStage* stage, const PhxStep* step);

}
