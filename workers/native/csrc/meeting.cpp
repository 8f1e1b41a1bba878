#include "meeting.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

#include "wait.h"

namespace phx {

namespace {

// Not the private kind: the word is in several processes.
long futex(std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* timeout) {
    return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, timeout, nullptr, 0);
}

}  // namespace

void Meeting::reach(uint32_t number) {
    // In one total order with `sleep`: either this sees the sleeper, or the sleeper sees the number.
    seats_[seat_].reached.store(number, std::memory_order_seq_cst);
    if (board_->sleepers.load(std::memory_order_seq_cst) == 0) return;
    for (int peer = 0; peer < size_; ++peer) {
        if (seats_[peer].awaits.load(std::memory_order_seq_cst) == static_cast<uint32_t>(seat_) + 1) ring(peer);
    }
}

int Meeting::await_all(uint32_t number, bool apart) {
    for (int peer = 0; peer < size_; ++peer) {
        if (const int outcome = await(peer, number, apart)) return outcome;
    }
    return MET;
}

void Meeting::abort() {
    aborted_.store(true, std::memory_order_seq_cst);
    ring(seat_);
}

int Meeting::wait(int peer, uint32_t number, bool apart) {
    const long started = now_ns();
    const int outcome = spin_or_sleep(peer, number, apart);
    waited_ns_.store(waited_ns() + now_ns() - started, std::memory_order_relaxed);
    return outcome;
}

int Meeting::spin_or_sleep(int peer, uint32_t number, bool apart) {
    if (aborted_.load(std::memory_order_relaxed)) return sleep(peer, number);
    const long patience = board_->crowd.patience(spin_ns_);
    if (spin_until([&] { return has_reached(peer, number); }, patience)) return MET;
    if (!apart) board_->crowd.missed(patience);
    Seat& mine = seats_[seat_];
    mine.awaits.store(static_cast<uint32_t>(peer) + 1, std::memory_order_seq_cst);
    board_->sleepers.fetch_add(1, std::memory_order_seq_cst);
    const int outcome = sleep(peer, number);
    board_->sleepers.fetch_sub(1, std::memory_order_relaxed);
    mine.awaits.store(0, std::memory_order_relaxed);
    return outcome;
}

int Meeting::sleep(int peer, uint32_t number) {
    std::atomic<uint32_t>& bell = seats_[seat_].bell;
    const long started = now_ns();
    while (true) {
        const uint32_t rung = bell.load(std::memory_order_seq_cst);
        const uint32_t reached = seats_[peer].reached.load(std::memory_order_seq_cst);
        if (static_cast<int32_t>(reached - number) >= 0) return MET;
        const bool aborted = aborted_.load(std::memory_order_seq_cst);
        const double waited = static_cast<double>(now_ns() - started) * 1e-9, left = timeout_s_ - waited;
        if (aborted || left <= 0) {
            stall_ = {peer, number, reached, waited};
            return aborted ? ABORTED : TIMED_OUT;
        }
        const timespec timeout{static_cast<time_t>(left), static_cast<long>((left - static_cast<time_t>(left)) * 1e9)};
        futex(bell, FUTEX_WAIT, rung, &timeout);
    }
}

void Meeting::ring(int seat) {
    seats_[seat].bell.fetch_add(1, std::memory_order_seq_cst);
    futex(seats_[seat].bell, FUTEX_WAKE, INT_MAX, nullptr);
}

}  // namespace phx
