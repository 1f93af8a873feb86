// Threads that go through a series of shared pieces of work together, on a machine that may have other things to do.
//
// A piece consists of items, which threads take as they come. It is over when all its items are done, not when all
// threads have come so far: a thread that has lost its core is missed only if it holds an item, and when it comes back
// it finds the pieces that are over and goes on to the one at work. Who has to wait looks for a moment, since the others
// are mostly done at once, and then sleeps, which leaves its core to a thread that holds an item.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace {

constexpr int LOOKS = 1 << 10;  // about 50 microseconds: waking up from sleep takes as long

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    asm volatile("yield");
#endif
}

class Team {
public:
    // Do `work(item)` for each item; returns when all are done. `piece` counts a thread's pieces, from 0 on, and every
    // thread shares the same pieces. What a thread prepares for a piece must be made of numbers that do not change until
    // that piece is over.
    template <typename F>
    void share(uint32_t& piece, int64_t items, int64_t together, F work) {
        for (;;) {
            uint64_t now = turn_.load(std::memory_order_acquire);
            int64_t begin = uint32_t(now), end = std::min(begin + together, items);
            if (now >> 32 != piece) break;
            if (begin == items) {
                wait(piece);
                break;
            }
            uint64_t taken = uint64_t(piece) << 32 | uint64_t(end);
            if (!turn_.compare_exchange_weak(now, taken, std::memory_order_acq_rel)) continue;
            for (int64_t item = begin; item < end; item++) work(item);
            if (done_.fetch_add(end - begin, std::memory_order_acq_rel) + end - begin == items) {
                begin_piece(piece + 1);
                break;
            }
        }
        piece++;
    }

private:
    void begin_piece(uint32_t piece) {
        done_.store(0, std::memory_order_relaxed);
        turn_.store(uint64_t(piece) << 32);
        if (sleepers_.load()) {
            { std::lock_guard<std::mutex> lock(mutex_); }  // a thread that is about to sleep has fallen asleep
            woken_.notify_all();
        }
    }

    void wait(uint32_t piece) {
        auto over = [&] { return turn_.load() >> 32 != piece; };
        for (int looks = 0; looks < LOOKS; looks++) {
            if (over()) return;
            pause();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_++;
        woken_.wait(lock, over);
        sleepers_--;
    }

    std::atomic<uint64_t> turn_{0};  // the piece at work, and how many of its items are taken
    std::atomic<int64_t> done_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable woken_;
};

}  // namespace
