// How processes of one host wait for each other: numbers that only grow, in memory that all of them map.
//
// Each participant has a seat with the number that it has reached. Whoever needs another one's number looks at it for a
// short while and then sleeps on its own bell, saying whom it waits for; whoever reaches a number rings the bells of
// those that sleep for it. While nobody sleeps, reaching a number is one write and no system call.
#pragma once

#include <atomic>
#include <cstdint>

#include "wait.h"

namespace phx {

struct alignas(128) Seat {  // two cache lines, as processors fetch them in pairs
    std::atomic<uint32_t> reached;
    alignas(64) std::atomic<uint32_t> awaits;  // 1 + the seat that this one sleeps for
    std::atomic<uint32_t> bell;
};

// Zeros are a valid beginning.
struct alignas(128) Board {
    std::atomic<uint32_t> sleepers;
    Crowd crowd;
};

static_assert(sizeof(Seat) == 128 && sizeof(Board) == 128, "this is the layout of a shared file");
static_assert(std::atomic<uint32_t>::is_always_lock_free && std::atomic<long>::is_always_lock_free,
              "locks do not work between processes");

enum Outcome { MET = 0, TIMED_OUT = 1, ABORTED = 2 };

// Who was waited for in vain.
struct Stall {
    int peer = -1;
    uint32_t wanted = 0, reached = 0;
    double seconds = 0;
};

class Meeting {
  public:
    // `board` is followed by the `size` seats. Threads spin for `spin_ns` before they sleep.
    Meeting(Board* board, int size, int seat, double timeout_s, long spin_ns)
        : board_(board), seats_(reinterpret_cast<Seat*>(board + 1)), size_(size), seat_(seat), timeout_s_(timeout_s),
          spin_ns_(spin_ns) {}

    static long bytes(int size) { return sizeof(Board) + size * sizeof(Seat); }

    // Says that this seat has reached `number`: whoever sees that sees everything written before.
    void reach(uint32_t number);

    // Waits until `peer` has reached `number`, which may have wrapped around. Where it does other work meanwhile, `apart`,
    // a long time tells nothing of how busy the cores are.
    int await(int peer, uint32_t number, bool apart = false) {
        return has_reached(peer, number) ? MET : wait(peer, number, apart);
    }
    int await_all(uint32_t number, bool apart = false);

    // What this seat has reached.
    uint32_t reached() const { return seats_[seat_].reached.load(std::memory_order_relaxed); }

    // How long this seat has waited for others; for any thread.
    long waited_ns() const { return waited_ns_.load(std::memory_order_relaxed); }

    // Makes what another thread of this process awaits end at once.
    void abort();

    const Stall& stall() const { return stall_; }

  private:
    bool has_reached(int peer, uint32_t number) const {
        return static_cast<int32_t>(seats_[peer].reached.load(std::memory_order_acquire) - number) >= 0;
    }
    int wait(int peer, uint32_t number, bool apart);
    int spin_or_sleep(int peer, uint32_t number, bool apart);
    int sleep(int peer, uint32_t number);
    void ring(int seat);

    Board* const board_;
    Seat* const seats_;
    const int size_, seat_;
    const double timeout_s_;
    const long spin_ns_;
    std::atomic<bool> aborted_{false};
    std::atomic<long> waited_ns_{0};
    Stall stall_;

    friend class Uncounted;
};

// While it lives, waits are not counted.
class Uncounted {
  public:
    explicit Uncounted(Meeting& meeting) : meeting_(meeting), before_(meeting.waited_ns()) {}
    ~Uncounted() { meeting_.waited_ns_.store(before_, std::memory_order_relaxed); }
    Uncounted(const Uncounted&) = delete;

  private:
    Meeting& meeting_;
    const long before_;
};

}  // namespace phx
