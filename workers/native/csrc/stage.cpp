#include "stage.h"

#include <memory>
#include <new>

#include "attention.h"
#include "pages.h"
#include "rows.h"

using namespace phx;

namespace {

constexpr long SPLIT_TILES = 32;  // the least tiles of context that a piece of a pass looks at

// Zeroed memory for `count` values.
template <class T> class Buffer {
  public:
    explicit Buffer(long count = 0) : pages_(count * sizeof(T)) {
        if (count > 0 && pages_.get() == nullptr) throw std::bad_alloc();
    }
    T* get() const { return reinterpret_cast<T*>(pages_.get()); }

  private:
    Pages pages_;
};

// What a product reads: rows in the form that its weight's format asks for.
struct Input {
    Buffer<char> rows;
    Buffer<float> scales, weighted;
    Buffer<int32_t> starts;
    long width = 0;  // values a row

    Input() = default;
    Input(long count, long inputs) {
        width = round_up(inputs, GROUP);
        rows = Buffer<char>(count * width * 4);
        scales = Buffer<float>(count * width / GROUP);
        weighted = Buffer<float>(count * width / GROUP);
        starts = Buffer<int32_t>(count * width / GROUP);
    }
    template <class T> Rows<T> as(long count) const {
        return {reinterpret_cast<T*>(rows.get()), width, Tiles(count, TILE_ROWS)};
    }
    QuantisedRows quantised(long count, long depth) const {
        return {reinterpret_cast<int8_t*>(rows.get()), scales.get(), weighted.get(), starts.get(), depth,
                Tiles(count, TILE_ROWS_INT)};
    }
    // Row m of `count` from floats, which are followed by zeros up to a multiple of 16.
    void put(const Weight& reader, long m, long count, const float* x, long size) {
        switch (reader.format) {
            case Format::Float32: put_as(as<float>(count), m, x, size); break;
            case Format::BFloat16: put_as(as<bf16>(count), m, x, size); break;
            default: quantise(x, size, reader.centre(), quantised(count, reader.depth), m);
        }
    }

  private:
    template <class T> static void put_as(const Rows<T>& to, long m, const float* x, long size) {
        for (long i = 0; i < size; i += LANES) to.put(m, i, load(x + i), size - i);
    }
};

struct StoreRows {
    static constexpr bool PAIRS = false;
    float* out;
    long stride;
    const float* bias;
    PHX_INLINE void operator()(long m, long n, F32 x) const { store(out + m * stride + n, bias ? add(x, load(bias + n)) : x); }
};

struct AddRows {
    static constexpr bool PAIRS = false;
    float* out;
    long stride;
    PHX_INLINE void operator()(long m, long n, F32 x) const {
        float* to = out + m * stride + n;
        store(to, add(load(to), x));
    }
};

// silu(gate) * up, as the next product's rows. Panels of gate and up take turns.
template <class T> struct Gate {
    static constexpr bool PAIRS = true;
    Rows<T> out;
    long columns;
    PHX_INLINE void operator()(long m, long n, F32 gate, F32 up) const {
        out.put(m, n / 2, mul(silu<EXP_TERMS<T>>(gate), up), columns - n / 2);
    }
};

// The same as plain rows of floats.
struct GateRows {
    static constexpr bool PAIRS = true;
    float* out;
    long columns;
    PHX_INLINE void operator()(long m, long n, F32 gate, F32 up) const {
        store_some(out + m * columns + n / 2, mul(silu<EXP_TERMS<bf16>>(gate), up), columns - n / 2);
    }
};

struct StoreLogits {
    static constexpr bool PAIRS = false;
    float* out;
    long stride, columns;
    PHX_INLINE void operator()(long m, long n, F32 x) const { store_some(out + m * stride + n, x, columns - n); }
};

// The largest logit of each row so far, and where; of equal ones the first.
struct KeepBest {
    static constexpr bool PAIRS = false;
    float* values;
    int32_t* ids;
    long columns;
    PHX_INLINE void operator()(long m, long n, F32 x) const {
        if (!any_above(x, values[m]) && n + LANES <= columns) return;
        float all[LANES];
        store(all, x);
        for (long i = 0; i < std::min<long>(LANES, columns - n); ++i) {
            if (all[i] > values[m]) values[m] = all[i], ids[m] = int32_t(n + i);
        }
    }
};

}  // namespace

struct PhxStage {
    virtual ~PhxStage() = default;
    virtual int run(const PhxStep& step) = 0;
};

namespace {

// Activations in T, keys and values kept in S.
template <class T, class S> class Stage final : public PhxStage {
  public:
    Stage(const PhxShape& shape, const PhxLayer* layers, long count, const Weight* embedding, const float* norm,
          const Weight* head)
        : s(shape), layers_(layers, layers + count), query_heads_(shape.query_heads, shape.query_heads + shape.kv_heads),
          embedding_(embedding), norm_(norm), head_(head), team_(shape.threads, shape.patient),
          width_(round_up(shape.hidden, LANES)), depth_(round_up(shape.head_dim, LANES)),
          qkv_width_(round_up((shape.heads + 2 * shape.kv_heads) * shape.head_dim, LANES)),
          tables_(shape.max_sequences * shape.max_blocks), x_(shape.max_tokens * width_),
          partial_(shape.ranks > 1 ? shape.max_tokens * width_ : 1), qkv_(shape.max_tokens * qkv_width_),
          queries_(shape.max_tokens * shape.heads * depth_), input_(shape.max_tokens, shape.hidden),
          mixed_(shape.max_tokens, shape.heads * shape.head_dim), gated_(shape.max_tokens, shape.mlp),
          floats_(shape.max_tokens * std::max(shape.heads * shape.head_dim, shape.mlp)) {
        const CacheShape cache{s.kv_blocks, s.block_size, s.kv_heads, s.head_dim};
        const long size = Cache<S>::size(cache);
        kept_ = Buffer<S>(2 * count * size);
        for (long layer = 0; layer < count; ++layer) {
            S* keys = kept_.get() + 2 * layer * size;
            caches_.push_back({cache, keys, keys + size});
        }
        const long group = query_heads_.empty() ? 1 : *std::max_element(query_heads_.begin(), query_heads_.end());
        most_rows_ = std::max(QUERY_ROWS, group);
        for (int thread = 0; thread < s.threads; ++thread) {
            few_.emplace_back(FEW_ROWS, std::max({s.hidden, s.mlp, s.heads * s.head_dim}));
            scratch_.emplace_back(most_rows_, depth_);
            row_.emplace_back(std::max(width_, 2 * depth_));
            best_values_.emplace_back(s.max_sequences);
            best_ids_.emplace_back(s.max_sequences);
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
            if (row[3]) sampled_.push_back(first - 1);
        }
        plan_passes();
    }

    // A pass that is much of the step's work is cut along the context, so that no thread waits for it.
    void plan_passes() {
        passes_.clear(), parts_.clear(), whole_.clear();
        const long per_block = caches_.empty() ? 1 : caches_[0].shape.tiles();
        long work = 0;
        for (const Chunk& chunk : chunks_) {
            long head = 0;
            for (long kv = 0; kv < s.kv_heads; ++kv) {
                const long group = query_heads_[kv], most = std::max<long>(1, QUERY_ROWS / std::max<long>(1, group));
                for (long begin = 0; begin < chunk.count && group > 0; begin += most) {
                    const long end = std::min(begin + most, chunk.count);
                    const long last = chunk.position + end - 1;  // the last key
                    const long tiles = last / s.block_size * per_block + last % s.block_size / TILE + 1;
                    whole_.push_back({chunk, begin, end, kv, head, group, 0, tiles});
                    work += whole_.back().work();
                }
                head += group;
            }
        }
        for (Pass& pass : whole_) {
            const long tiles = pass.last_tile;
            const long pieces = s.threads == 1 ? 1 : std::min(tiles / SPLIT_TILES, 4 * s.threads * pass.work() / work);
            if (pieces < 2) {
                passes_.push_back(pass);
                continue;
            }
            parts_.push_back({long(passes_.size()), pieces});
            for (pass.part = 0; pass.part < pieces; ++pass.part) {
                pass.first_tile = tiles * pass.part / pieces, pass.last_tile = tiles * (pass.part + 1) / pieces;
                passes_.push_back(pass);
            }
        }
        if (!parts_.empty()) {
            const long size = most_rows_ * (depth_ + 2);
            if (long(partials_.size()) < long(passes_.size()) * size) partials_.resize(passes_.size() * size);
        }
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
        const Tiles tiles(rows, reader.quantised() ? TILE_ROWS_INT : TILE_ROWS);
        for (long tile; (tile = team_.claim(1)) < tiles.count;) {
            for (long m = tiles.begin(tile); m < tiles.begin(tile + 1); ++m) work(m);
        }
        team_.barrier();
    }

    template <class Finish> void multiply(const Input& in, long rows, const Weight& w, Finish finish, int thread) {
        switch (w.format) {
            case Format::Float32: product(team_, thread, in.as<float>(rows), rows, w, finish); break;
            case Format::BFloat16: product(team_, thread, in.as<bf16>(rows), rows, w, finish); break;
            default: product(team_, thread, in.quantised(rows, w.depth), rows, w, finish); break;
        }
    }

    // Sums partial_ over the ranks; then x_ holds the new residual stream. All threads have met before.
    bool reduce(int thread) {
        if (thread == 0) {
            const int status = s.reducer.all_reduce(s.reducer.self, partial_.get(), tokens_ * width_);
            if (status != 0) status_ = status;
        }
        team_.barrier();
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
            multiply(*in, tokens_, *w, AddRows{x_.get(), width_}, thread);
            team_.barrier();
            return true;
        }
        if (w != nullptr) {
            multiply(*in, tokens_, *w, StoreRows{partial_.get(), width_, nullptr}, thread);
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

    // Rotates queries and keys, and puts keys and values into the cache.
    void place(long layer, int thread) {
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
            for (long head = 0; head < s.heads; ++head) {
                float* q = qkv + head * dim;
                if (l.query_norm) normalise(q, l.query_norm, s.eps, dim, q);
                rotate(q, cos, sin, dim);
                T* to = queries_.get() + (m * s.heads + head) * depth_;
                for (long d = 0; d < dim; d += LANES) {
                    if (d + LANES <= dim) {
                        store_as(to + d, load(q + d));
                    } else {
                        for (long i = d; i < dim; ++i) to[i] = convert(q[i], T{});
                    }
                }
            }
            const long block = chunk.table[position / s.block_size], offset = position % s.block_size;
            for (long head = 0; head < s.kv_heads; ++head) {
                std::memcpy(key, qkv + (s.heads + head) * dim, dim * 4);
                if (l.key_norm) normalise(key, l.key_norm, s.eps, dim, key);
                rotate(key, cos, sin, dim);
                std::memcpy(value, qkv + (s.heads + s.kv_heads + head) * dim, dim * 4);
                cache.write(block, offset, head, key, value);
            }
        };
        // The tokens of a tile lie in the same cache lines, which should not go from core to core.
        const long chunk = std::clamp(tokens_ / (4 * s.threads), 2l, TILE);
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

    // A pass without the tiles that lie before the window.
    Pass within(long window, long layer, long i) const {
        Pass pass = passes_[i];
        if (window > 0) {
            const long begin = std::max<long>(0, pass.chunk.position + pass.begin - window + 1);
            const long per_block = caches_[layer].shape.tiles();
            const long tile = begin / s.block_size * per_block + begin % s.block_size / TILE;
            pass.first_tile = std::min(std::max(pass.first_tile, tile), pass.last_tile);
        }
        return pass;
    }

    // put(token, column, F32, count) gets what the query heads have found.
    template <class Put> void attend_all(long layer, Put put, int thread) {
        const float scale = 1.0f / std::sqrt(float(s.head_dim));
        AttentionScratch<S>& scratch = scratch_[thread];
        const long size = most_rows_ * (depth_ + 2), window = layers_[layer].window;
        const long count = long(passes_.size());
        for (long i = thread, following; i < count; i = following) {
            following = team_.size() + team_.claim(1);
            const Pass pass = within(window, layer, i), next = within(window, layer, std::min(following, count - 1));
            attend(pass, following < count ? &next : nullptr, caches_[layer], queries_.get(), s.heads, window, scale, scratch);
            const long rows = (pass.end - pass.begin) * pass.query_heads;
            if (pass.part < 0) {
                for (long r = 0; r < rows; ++r) put_mixed(put, pass, r, scratch.out.data() + r * depth_, scratch.total[r]);
            } else {
                float* to = partials_.data() + i * size;
                std::copy_n(scratch.out.data(), rows * depth_, to);
                std::copy_n(scratch.maximum.data(), rows, to + most_rows_ * depth_);
                std::copy_n(scratch.total.data(), rows, to + most_rows_ * (depth_ + 1));
            }
        }
        team_.barrier();
        if (!parts_.empty()) merge_parts(put, thread);
    }

    template <class Put> void merge_parts(Put put, int thread) {
        const long size = most_rows_ * (depth_ + 2);
        float* sums = scratch_[thread].out.data();
        for (long i; (i = team_.claim(1)) < long(parts_.size());) {
            const auto [first, pieces] = parts_[i];
            const Pass& pass = passes_[first];
            for (long r = 0; r < (pass.end - pass.begin) * pass.query_heads; ++r) {
                const auto maximum = [&](long p) { return partials_[(first + p) * size + most_rows_ * depth_ + r]; };
                float most = maximum(0), total = 0;
                for (long p = 1; p < pieces; ++p) most = std::max(most, maximum(p));
                std::fill_n(sums, depth_, 0.0f);
                for (long p = 0; p < pieces; ++p) {
                    const float* from = partials_.data() + (first + p) * size;
                    const float share = std::exp2(maximum(p) - most);
                    total += from[most_rows_ * (depth_ + 1) + r] * share;
                    for (long d = 0; d < depth_; d += LANES) {
                        store(sums + d, fma(load(from + r * depth_ + d), set1(share), load(sums + d)));
                    }
                }
                put_mixed(put, pass, r, sums, total);
            }
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
        const Input& in = normed(tokens_, nullptr, l.attention_norm, *l.qkv, thread);
        multiply(in, tokens_, *l.qkv, StoreRows{qkv_.get(), qkv_width_, l.qkv_bias}, thread);
        team_.barrier();
        place(layer, thread);
        const long size = s.heads * s.head_dim;
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

    bool mlp(long layer, int thread) {
        const PhxLayer& l = layers_[layer];
        if (s.mlp == 0) return add_product(nullptr, nullptr, thread);
        const Input& in = normed(tokens_, nullptr, l.mlp_norm, *l.gate_up, thread);
        if (l.down->quantised()) {
            multiply(in, tokens_, *l.gate_up, GateRows{floats_.get(), s.mlp}, thread);
            team_.barrier();
            return add_product(&requantised(gated_, s.mlp, *l.down, thread), l.down, thread);
        }
        if (l.down->format == Format::BFloat16) {
            multiply(in, tokens_, *l.gate_up, Gate<bf16>{gated_.as<bf16>(tokens_), s.mlp}, thread);
        } else {
            multiply(in, tokens_, *l.gate_up, Gate<float>{gated_.as<float>(tokens_), s.mlp}, thread);
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
        if (head_ == nullptr || samples == 0) return;
        const Input& in = normed(samples, sampled_.data(), norm_, *head_, thread);
        if (step.logits != nullptr) {
            multiply(in, samples, *head_, StoreLogits{step.logits, step.logits_stride, s.vocab}, thread);
            return;
        }
        float* values = best_values_[thread].data();
        int32_t* ids = best_ids_[thread].data();
        std::fill_n(values, samples, -std::numeric_limits<float>::infinity());
        std::fill_n(ids, samples, int32_t(s.vocab));
        multiply(in, samples, *head_, KeepBest{values, ids, s.vocab}, thread);
        team_.barrier();
        if (thread != 0) return;
        for (long m = 0; m < samples; ++m) {
            float value = best_values_[0][m];
            int32_t id = best_ids_[0][m];
            for (int other = 1; other < s.threads; ++other) {
                const float v = best_values_[other][m];
                const int32_t i = best_ids_[other][m];
                if (v > value || (v == value && i < id)) value = v, id = i;
            }
            step.best_logits[m] = value;
            step.best_ids[m] = int32_t(s.vocab_start) + id;
        }
    }

    void forward(const PhxStep& step, int thread) {
        enter(step, thread);
        if (status_ != 0) return;
        for (long layer = 0; layer < long(layers_.size()); ++layer) {
            if (!attention(layer, thread) || !mlp(layer, thread)) return;
        }
        leave(step, thread);
    }

    const PhxShape s;
    const std::vector<PhxLayer> layers_;
    const std::vector<int> query_heads_;
    const Weight* embedding_;
    const float* norm_;
    const Weight* head_;
    Team team_;
    const long width_, depth_, qkv_width_;
    long most_rows_ = 0;
    int status_ = 0;

    Buffer<int32_t> tables_;              // [max_sequences, max_blocks]
    Buffer<float> x_, partial_, qkv_;     // the residual stream, a rank's share of a sum, projections: [tokens, width]
    Buffer<T> queries_;                   // [tokens, heads, depth]
    Input input_, mixed_, gated_;         // of qkv, gate_up and head; of out; of down
    Buffer<float> floats_;                // rows on their way to a quantised input
    Buffer<S> kept_;                      // the keys and values of all layers
    std::vector<Cache<S>> caches_;

    std::vector<Input> few_;              // by thread
    std::vector<AttentionScratch<S>> scratch_;
    std::vector<Buffer<float>> row_;
    std::vector<std::vector<float>> best_values_;
    std::vector<std::vector<int32_t>> best_ids_;

    long tokens_ = 0;                     // of this step
    std::vector<Chunk> chunks_;
    std::vector<long> chunk_of_, sampled_;
    std::vector<Pass> whole_, passes_;    // before and after they are cut
    struct Part {
        long first, pieces;
    };
    std::vector<Part> parts_;
    std::vector<float> partials_;
};

}  // namespace

extern "C" {

PhxStage* phx_stage_new(const PhxShape* shape, const PhxLayer* layers, long count, const Weight* embedding,
                        const float* norm, const Weight* head) {
    try {
        const auto stage = [&](auto activation, auto kept) -> PhxStage* {
            return new Stage<decltype(activation), decltype(kept)>(*shape, layers, count, embedding, norm, head);
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
