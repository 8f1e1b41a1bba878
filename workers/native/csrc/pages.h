// Memory in the shape that vectors like: zeroed in large pages where the system has them, or from a cache line on.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace phx {

// Unmapped with its owner.
class Pages {
  public:
    static constexpr size_t LARGE = 2 << 20;

    // `get` is null when there is no memory, or none was asked for.
    explicit Pages(size_t bytes = 0) : bytes_(bytes) {
        if (bytes == 0) return;
        // From a whole large page on, so that the first one is large too.
        const bool large = bytes >= LARGE / 2;
        mapped_ = bytes + (large ? LARGE : 0);
        void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return;
        start_ = data_ = static_cast<char*>(p);
        if (!large) return;
        data_ += (LARGE - reinterpret_cast<uintptr_t>(p) % LARGE) % LARGE;
        madvise(data_, start_ + mapped_ - data_, MADV_HUGEPAGE);
    }
    Pages(Pages&& other) noexcept { swap(other); }
    Pages& operator=(Pages&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Pages() {
        if (start_ != nullptr) munmap(start_, mapped_);
    }

    char* get() const { return data_; }
    size_t bytes() const { return bytes_; }

  private:
    void swap(Pages& other) {
        std::swap(start_, other.start_), std::swap(data_, other.data_);
        std::swap(mapped_, other.mapped_), std::swap(bytes_, other.bytes_);
    }
    char *start_ = nullptr, *data_ = nullptr;
    size_t mapped_ = 0, bytes_ = 0;
};

// A vector whose values begin with a cache line: a register's worth of them would else lie in two, by the whim of malloc.
template <class T> struct LineAllocator {
    using value_type = T;
    static constexpr std::align_val_t LINE{64};
    LineAllocator() = default;
    template <class Other> LineAllocator(const LineAllocator<Other>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new((count * sizeof(T) + 63) / 64 * 64, LINE)); }
    void deallocate(T* p, size_t) { ::operator delete(p, LINE); }
    bool operator==(const LineAllocator&) const { return true; }
    bool operator!=(const LineAllocator&) const { return false; }
};
template <class T> using Lines = std::vector<T, LineAllocator<T>>;

}  // namespace phx
