// A draw from the k first tokens, which top-p and min-p may filter further, over shards of a vocabulary. Every shard
// offers its own first ones.
#pragma once

#include <algorithm>
#include <vector>

#include "draw.h"
#include "token.h"

namespace phx {

// The first `most` of a shard's tokens, in order; those at -inf do not count.
inline void first_tokens(const float* logits, long columns, int32_t first_id, long most, std::vector<PhxToken>& tokens) {
    const long room = most + std::max<long>(most, 4 * LANES);
    tokens.resize(room + LANES);
    PhxToken* const found = tokens.data();
    long count = 0;
    float limit = NO_LOGIT;
    const auto cut = [&] {
        std::nth_element(found, found + most - 1, found + count, before);
        count = most;
        limit = found[most - 1].logit;
    };
    each_vector(logits, 0, columns, [&](long n, F32 x) {
        if (!any_above(x, limit)) return;
        float some[LANES];
        store(some, x);
        for (int i = 0; i < LANES; ++i) {  // no branch, as nobody could foretell it
            found[count] = {some[i], int32_t(first_id + n + i)};
            count += some[i] > limit;
        }
        if (count >= room) cut();
    });
    if (count > most) cut();
    tokens.resize(count);
    std::sort(tokens.begin(), tokens.end(), before);
}

class TopK {
  public:
    // Shard after shard.
    void offer(const PhxToken* tokens, long most) {
        const PhxToken* end = tokens + most;
        tokens_.insert(tokens_.end(), tokens, std::find_if(tokens, end, [](const PhxToken& t) { return t.id < 0; }));
    }

    // A token of those offered.
    int32_t draw(const PhxDraw& draw) {
        std::sort(tokens_.begin(), tokens_.end(), before);
        if (long(tokens_.size()) > draw.top_k) tokens_.resize(draw.top_k);
        const int32_t chosen = tokens_.empty() ? 0 : tokens_[best(draw, passing(draw))].id;
        tokens_.clear();
        return chosen;
    }

  private:
    long passing(const PhxDraw& draw) const {
        const double best = tokens_[0].logit;
        const auto weight = [&](const PhxToken& token) { return std::exp((token.logit - best) / draw.temperature); };
        double total = 0, sum = 0;
        for (const PhxToken& token : tokens_) total += weight(token);
        for (size_t i = 0; i < tokens_.size(); ++i) {
            const double own = weight(tokens_[i]);
            if (i > 0 && ((draw.top_p < 1 && sum >= draw.top_p * total) || own < draw.min_p)) return long(i);
            sum += own;
        }
        return long(tokens_.size());
    }

    // The place of the best score among the first `count`.
    long best(const PhxDraw& draw, long count) {
        const long padded = round_up(count, LANES);
        logits_.resize(padded), ids_.resize(padded), keys_.resize(padded);
        for (long i = 0; i < count; ++i) logits_[i] = tokens_[i].logit, ids_[i] = tokens_[i].id;
        const Scores scores(draw);
        float value = NO_LOGIT;
        int32_t place = 0;
        const KeepBest keep{&scores, keys_.data(), &value, &place, count};
        for (long n = 0; n < padded; n += LANES) {
            store(keys_.data() + n, token_keys(load(ids_.data() + n)));
            keep(0, n, load(logits_.data() + n));
        }
        return place;
    }

    std::vector<PhxToken> tokens_;
    std::vector<float> logits_;
    std::vector<int32_t> ids_, keys_;
};

}  // namespace phx
