#include "stage.h"

#include <new>

#include "best.h"
#include "finish.h"
#include "input.h"
#include "passes.h"
#include "screen.h"

using namespace phx;

struct PhxStage {
    virtual ~PhxStage() = default;
    virtual int run(const PhxStep& step) = 0;
};

namespace {

// Activations in T, keys and values kept in S.
template <class T, class S> class Stage final : public PhxStage {
  public:
    Stage(const PhxShape& shape, const PhxLayer* layers, long count, const Weight* embedding, const float* norm,
          const Weight* head, const PhxScreen& screen)
        : s(shape), layers_(layers, layers + count), embedding_(embedding), norm_(norm), head_(head),
          team_(*shape.team),
          width_(round_up(shape.hidden, LANES)), depth_(round_up(shape.head_dim, LANES)),
          qkv_width_(round_up((shape.heads + 2 * shape.kv_heads) * shape.head_dim, LANES)),
          tables_(shape.max_sequences * shape.max_blocks),
          passes_({shape.kv_blocks, shape.block_size, shape.kv_heads, shape.head_dim}, shape.query_heads, team_.size()),
          x_(shape.max_tokens * width_),
          partial_(shape.ranks > 1 ? shape.max_tokens * width_ : 1), qkv_(shape.max_tokens * qkv_width_),
          queries_(shape.max_tokens * shape.heads * depth_), input_(shape.max_tokens, shape.hidden),
          mixed_(shape.max_tokens, shape.heads * shape.head_dim), gated_(shape.max_tokens, shape.mlp),
          floats_(shape.max_tokens * std::max(shape.heads * shape.head_dim, shape.mlp)), best_(team_.size()),
          screen_(screen, head, shape, team_.size()) {
        const CacheShape cache{s.kv_blocks, s.block_size, s.kv_heads, s.head_dim};
        const long size = Cache<S>::size(cache);
        kept_ = Buffer<S>(2 * count * size);
        for (long layer = 0; layer < count; ++layer) {
            S* keys = kept_.get() + 2 * layer * size;
            caches_.push_back({cache, keys, keys + size});
        }
        for (int thread = 0; thread < team_.size(); ++thread) {
            few_.emplace_back(FEW_ROWS, std::max({s.hidden, s.mlp, s.heads * s.head_dim}));
            scratch_.emplace_back(passes_.most_rows(), depth_);
            row_.emplace_back(std::max(width_, 2 * depth_));
        }
    }

    int run(const PhxStep& step) override {
        take(step);
        status_ = 0;
        team_.run([&](int thread) { forward(step, thread); });
        return status_;
    }

  private:
    // The part of a step that needs no product.
    void take(const PhxStep& step) {
        for (long i = 0; i < step.updates_count; ++i) {
            const int32_t* u = step.updates + 3 * i;
            tables_.get()[u[0] * s.max_blocks + u[1]] = u[2];
        }
        tokens_ = step.tokens_count;
        chunks_.clear(), sampled_.clear(), chunk_of_.resize(tokens_);
        long first = 0;
        for (long i = 0; i < step.sequences; ++i) {
            const int32_t* row = step.rows + 4 * i;
            chunks_.push_back({first, row[2], row[1], tables_.get() + row[0] * s.max_blocks});
            std::fill_n(chunk_of_.begin() + first, row[2], i);
            first += row[2];
            for (long back = row[3]; back > 0; --back) sampled_.push_back(first - back);
        }
        passes_.plan(chunks_);
        const long samples = long(sampled_.size());
        narrows_ = step.hidden_out == nullptr && 2 * samples <= tokens_, narrowed_ = false;
        screens_ = false;
        if (step.draws == nullptr) return;
        best_.expect(step.draws, nullptr, samples);
        screens_ = screen_.expect(step.draws, samples);
    }

    bool few(long rows) const { return rows <= FEW_ROWS; }
    Input& input(long rows, Input& shared, int thread) { return few(rows) ? few_[thread] : shared; }

    // Calls work(row) for every row that `reader` will read: on every thread when there are few, else once, and then all
    // threads meet. The rows of a tile share cache lines, which should not go from core to core.
    template <class Work> void each(long rows, const Weight& reader, Work work) {
        if (few(rows)) {
            for (long m = 0; m < rows; ++m) work(m);
            return;
        }
        const Tiles tiles = tiles_of(reader.format, rows);
        for (long tile; (tile = team_.claim(1)) < tiles.count;) {
            for (long m = tiles.begin(tile); m < tiles.begin(tile + 1); ++m) work(m);
        }
        team_.barrier();
    }

    // Sums partial_ over the ranks; then x_ holds the new residual stream. All threads have met before.
    bool reduce(int thread) {
        if (thread == 0) {
            const int status = s.reducer.all_reduce(s.reducer.self, partial_.get(), tokens_ * width_);
            if (status != 0) status_ = status;
        }
        team_.barrier(true);
        if (status_ != 0) return false;
        const long chunk = 16 * width_;
        const long all = tokens_ * width_;
        for (long first; (first = team_.claim(chunk)) < all;) {
            const long end = std::min(first + chunk, all);
            for (long i = first; i < end; i += LANES) {
                store(x_.get() + i, add(load(x_.get() + i), load(partial_.get() + i)));
            }
        }
        team_.barrier();
        return true;
    }

    // x_ += w · in, summed over the ranks.
    bool add_product(const Input* in, const Weight* w, int thread) {
        if (s.ranks == 1) {
            in->product(team_, thread, tokens_, *w, AddRows{x_.get(), width_});
            team_.barrier();
            return true;
        }
        if (w != nullptr) {
            in->product(team_, thread, tokens_, *w, StoreRows{partial_.get(), width_, nullptr});
        } else if (thread == 0) {  // this rank only takes part in the sum
            std::fill_n(partial_.get(), tokens_ * width_, 0.0f);
        }
        team_.barrier();
        return reduce(thread);
    }

    // The normed rows as input of a product.
    Input& normed(long rows, const long* which, const float* norm, const Weight& reader, int thread) {
        Input& in = input(rows, input_, thread);
        float* row = row_[thread].get();
        std::fill(row + s.hidden, row + width_, 0.0f);
        each(rows, reader, [&](long m) {
            normalise(x_.get() + (which ? which[m] : m) * width_, norm, s.eps, s.hidden, row);
            in.put(reader, m, rows, row, s.hidden);
        });
        return in;
    }

    void embed(const PhxStep& step) {
        constexpr long chunk = 4;
        const bool whole = s.ranks == 1;
        float* to = whole ? x_.get() : partial_.get();
        for (long first; (first = team_.claim(chunk)) < tokens_;) {
            for (long m = first; m < std::min(first + chunk, tokens_); ++m) {
                const long row = step.tokens[m] - s.vocab_start;
                std::fill_n(x_.get() + m * width_, width_, 0.0f);
                if (!whole) std::fill_n(to + m * width_, width_, 0.0f);
                if (row >= 0 && row < s.vocab) unpack_row(*embedding_, row, to + m * width_);
            }
        }
        team_.barrier();
    }

    void enter(const PhxStep& step, int thread) {
        if (embedding_ == nullptr && step.hidden_in == nullptr) {  // a rank without rows of the vocabulary
            if (thread == 0) {
                std::fill_n(x_.get(), tokens_ * width_, 0.0f);
                std::fill_n(partial_.get(), tokens_ * width_, 0.0f);
            }
            team_.barrier();
        } else if (step.hidden_in == nullptr) {
            embed(step);
        } else {
            if (thread == 0) {
                for (long m = 0; m < tokens_; ++m) {
                    std::memcpy(x_.get() + m * width_, step.hidden_in + m * s.hidden, s.hidden * 4);
                }
            }
            team_.barrier();
            return;
        }
        if (s.ranks > 1) reduce(thread);
    }

    // These panels of queries, keys and values.
    void project(long layer, long first, long end, int thread) {
        const PhxLayer& l = layers_[layer];
        const Input& in = normed(tokens_, nullptr, l.attention_norm, *l.qkv, thread);
        const float* bias = l.qkv_bias == nullptr ? nullptr : l.qkv_bias + first * LANES;
        in.product(team_, thread, tokens_, l.qkv->part(first, end), StoreRows{qkv_.get() + first * LANES, qkv_width_, bias});
        team_.barrier();
    }

    // Rotates queries and keys, and puts keys and values into the cache.
    template <bool QUERIES, bool KEYS> void place(long layer, int thread) {
        const PhxLayer& l = layers_[layer];
        const Cache<S>& cache = caches_[layer];
        const long dim = s.head_dim, half = dim / 2;
        float *key = row_[thread].get(), *value = key + depth_;
        std::fill_n(key, 2 * depth_, 0.0f);
        const auto one = [&](long m) {
            const Chunk& chunk = chunks_[chunk_of_[m]];
            const long position = chunk.position + m - chunk.first;
            const float *cos = s.cos + position * half, *sin = s.sin + position * half;
            float* qkv = qkv_.get() + m * qkv_width_;
            for (long head = 0; QUERIES && head < s.heads; ++head) {
                float* q = qkv + head * dim;
                if (l.query_norm) normalise(q, l.query_norm, s.eps, dim, q);
                rotate(q, cos, sin, dim);
                Kept<T>* to = queries_.get() + (m * s.heads + head) * depth_;
                for (long d = 0; d < dim; d += LANES) keep(to + d, load_some(q + d, dim - d), T{});
            }
            const long block = chunk.table[position / s.block_size], offset = position % s.block_size;
            for (long head = 0; KEYS && head < s.kv_heads; ++head) {
                std::memcpy(key, qkv + (s.heads + head) * dim, dim * 4);
                if (l.key_norm) normalise(key, l.key_norm, s.eps, dim, key);
                rotate(key, cos, sin, dim);
                std::memcpy(value, qkv + (s.heads + s.kv_heads + head) * dim, dim * 4);
                cache.write(block, offset, head, key, value);
            }
        };
        // The tokens of a tile lie in the same cache lines, which should not go from core to core.
        const long chunk = std::clamp(tokens_ / (4 * team_.size()), 2l, TILE);
        for (long first; (first = team_.claim(chunk)) < tokens_;) {
            for (long m = first; m < std::min(first + chunk, tokens_); ++m) one(m);
        }
        team_.barrier();
    }

    // One finished row of a pass: its sums over its total.
    template <class Put> void put_mixed(Put put, const Pass& pass, long r, const float* sums, float total) {
        const long token = pass.chunk.first + pass.begin + r / pass.query_heads;
        const long column = (pass.first_query_head + r % pass.query_heads) * s.head_dim;
        const F32 scale = set1(1.0f / total);
        for (long d = 0; d < s.head_dim; d += LANES) put(token, column + d, mul(load(sums + d), scale), s.head_dim - d);
    }

    // put(token, column, F32, count) gets what the query heads have found.
    template <class Put> void attend_all(long layer, Put put, int thread) {
        const float scale = 1.0f / std::sqrt(float(s.head_dim));
        AttentionScratch<T, S>& scratch = scratch_[thread];
        const long window = layers_[layer].window, count = passes_.count();
        for (long i = thread, following; i < count; i = following) {
            following = team_.size() + team_.claim(1);
            const Pass pass = passes_.within(window, i), next = passes_.within(window, std::min(following, count - 1));
            attend(pass, following < count ? &next : nullptr, caches_[layer], queries_.get(), s.heads, window, scale, scratch);
            if (pass.part >= 0) {
                passes_.keep(i, pass, scratch);
                continue;
            }
            for (long r = 0; r < pass.rows(); ++r) {
                put_mixed(put, pass, r, scratch.out.data() + r * depth_, scratch.total[r]);
            }
        }
        team_.barrier();
        if (passes_.parted() == 0) return;
        for (long i; (i = team_.claim(1)) < passes_.parted();) {
            passes_.merge(i, scratch.out.data(), [&](const Pass& pass, long r, const float* sums, float total) {
                put_mixed(put, pass, r, sums, total);
            });
        }
        team_.barrier();
    }

    // floats_ as input of a quantised product.
    Input& requantised(Input& shared, long size, const Weight& reader, int thread) {
        Input& in = input(tokens_, shared, thread);
        each(tokens_, reader, [&](long m) { in.put(reader, m, tokens_, floats_.get() + m * size, size); });
        return in;
    }

    bool attention(long layer, int thread) {
        const PhxLayer& l = layers_[layer];
        if (s.heads == 0) return add_product(nullptr, nullptr, thread);
        const long size = s.heads * s.head_dim;
        if (narrowed_) {
            project(layer, 0, (size + LANES - 1) / LANES, thread);
            place<true, false>(layer, thread);
        } else {
            project(layer, 0, l.qkv->panels, thread);
            place<true, true>(layer, thread);
        }
        if (l.out->quantised()) {
            float* out = floats_.get();
            attend_all(layer, [=](long m, long k, F32 x, long some) { store_some(out + m * size + k, x, some); }, thread);
            return add_product(&requantised(mixed_, size, *l.out, thread), l.out, thread);
        }
        if (l.out->format == Format::BFloat16) {
            attend_into(layer, mixed_.as<bf16>(tokens_), thread);
        } else {
            attend_into(layer, mixed_.as<float>(tokens_), thread);
        }
        return add_product(&mixed_, l.out, thread);
    }
    template <class Out> void attend_into(long layer, const Rows<Out>& out, int thread) {
        attend_all(layer, [=](long m, long k, F32 x, long some) { out.put(m, k, x, some); }, thread);
    }

    // Behind the last layer only those tokens count that another one is sampled after, so of the others it needs keys and
    // values alone. When these are there, the step goes on as one of the sampled tokens.
    void narrow(long layer, int thread) {
        if (s.heads > 0) {
            project(layer, s.heads * s.head_dim / LANES, layers_[layer].qkv->panels, thread);
            place<false, true>(layer, thread);
        }
        if (thread == 0) gather_sampled();
        team_.barrier();
    }
    void gather_sampled() {
        std::vector<Chunk> chunks;
        long before = -1;
        for (long i = 0; i < long(sampled_.size()); ++i) {
            const long token = sampled_[i], of = chunk_of_[token];
            const Chunk& chunk = chunks_[of];
            std::memcpy(x_.get() + i * width_, x_.get() + token * width_, width_ * sizeof(float));
            if (of != before) chunks.push_back({i, 0, chunk.position + token - chunk.first, chunk.table});
            ++chunks.back().count;
            before = of, sampled_[i] = i, chunk_of_[i] = long(chunks.size()) - 1;
        }
        chunks_ = std::move(chunks), tokens_ = long(sampled_.size()), narrowed_ = true;
        passes_.plan(chunks_);
    }

    bool mlp(long layer, int thread) {
        const PhxLayer& l = layers_[layer];
        if (s.mlp == 0) return add_product(nullptr, nullptr, thread);
        const Input& in = normed(tokens_, nullptr, l.mlp_norm, *l.gate_up, thread);
        if (l.down->quantised()) {
            in.product(team_, thread, tokens_, *l.gate_up, GateRows{floats_.get(), s.mlp});
            team_.barrier();
            return add_product(&requantised(gated_, s.mlp, *l.down, thread), l.down, thread);
        }
        if (l.down->format == Format::BFloat16) {
            in.product(team_, thread, tokens_, *l.gate_up, Gate<bf16>{gated_.as<bf16>(tokens_), s.mlp});
        } else {
            in.product(team_, thread, tokens_, *l.gate_up, Gate<float>{gated_.as<float>(tokens_), s.mlp});
        }
        team_.barrier();
        return add_product(&gated_, l.down, thread);
    }

    void leave(const PhxStep& step, int thread) {
        if (step.hidden_out != nullptr && thread == 0) {
            for (long m = 0; m < tokens_; ++m) {
                std::memcpy(step.hidden_out + m * s.hidden, x_.get() + m * width_, s.hidden * 4);
            }
        }
        const long samples = long(sampled_.size());
        if (samples == 0) return;
        if (screens_) {
            screen(samples, thread);
        } else if (head_ != nullptr) {
            const Input& in = normed(samples, sampled_.data(), norm_, *head_, thread);
            if (step.logits != nullptr) {
                in.product(team_, thread, samples, *head_, StoreLogits{step.logits, step.logits_stride, s.vocab});
            } else {
                in.product(team_, thread, samples, *head_, best_.keep(thread, s.token_keys, s.vocab));
            }
        }
        if (step.draws == nullptr) return;
        team_.barrier();
        if (thread != 0) return;
        if (screens_) screen_.learn(samples);
        best_.merge([&](long m, float score, int32_t column) {
            step.best_scores[m] = score, step.best_ids[m] = int32_t(s.vocab_start) + column;
        });
    }

    // The best of few rows' logits, of which most are not computed.
    void screen(long rows, int thread) {
        for (long m = 0; m < rows; ++m) {
            float* row = screen_.row(thread, m);
            normalise(x_.get() + sampled_[m] * width_, norm_, s.eps, s.hidden, row);
            few_[thread].put(*head_, m, rows, row, s.hidden);
        }
        screen_.look(team_, thread, rows, best_.keep(thread, s.token_keys, s.vocab),
                     [&](long panel, const KeepBest& finish) { few_[thread].panel(rows, *head_, panel, finish); });
    }

    void forward(const PhxStep& step, int thread) {
        enter(step, thread);
        if (status_ != 0) return;
        for (long layer = 0; layer < step.layers; ++layer) {
            if (narrows_ && layer + 1 == step.layers) narrow(layer, thread);
            if (tokens_ == 0) break;
            if (!attention(layer, thread) || !mlp(layer, thread)) return;
        }
        leave(step, thread);
    }

    const PhxShape s;
    const std::vector<PhxLayer> layers_;
    const Weight* embedding_;
    const float* norm_;
    const Weight* head_;
    Team& team_;
    const long width_, depth_, qkv_width_;
    int status_ = 0;

    Buffer<int32_t> tables_;              // [max_sequences, max_blocks]
    Passes passes_;                       // of this step
    Buffer<float> x_, partial_, qkv_;     // the residual stream, a rank's share of a sum, projections: [tokens, width]
    Buffer<Kept<T>> queries_;             // [tokens, heads, depth]
    Input input_, mixed_, gated_;         // of qkv, gate_up and head; of out; of down
    Buffer<float> floats_;                // rows on their way to a quantised input
    Buffer<S> kept_;                      // the keys and values of all layers
    std::vector<Cache<S>> caches_;

    std::vector<Input> few_;              // by thread
    std::vector<AttentionScratch<T, S>> scratch_;
    std::vector<Buffer<float>> row_;
    Best best_;
    Screen screen_;
    bool screens_ = false;                // in this step

    long tokens_ = 0;                     // of this step
    bool narrows_ = false, narrowed_ = false;
    std::vector<Chunk> chunks_;
    std::vector<long> chunk_of_, sampled_;
};

}  // namespace

extern "C" {

PhxStage* phx_stage_new(const PhxShape* shape, const PhxLayer* layers, long count, const Weight* embedding,
                        const float* norm, const Weight* head, const PhxScreen* screen) {
    try {
        const auto stage = [&](auto activation, auto kept) -> PhxStage* {
            return new Stage<decltype(activation), decltype(kept)>(*shape, layers, count, embedding, norm, head, *screen);
        };
        if (shape->float32) return shape->int8_cache ? stage(float{}, int8_t{}) : stage(float{}, float{});
        return shape->int8_cache ? stage(bf16{}, int8_t{}) : stage(bf16{}, bf16{});
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void phx_stage_free(PhxStage* stage) { delete stage; }

int phx_stage_run(PhxStage* stage, const PhxStep* step) { return stage->run(*step); }

}  // extern "C"
