// How matrices lie in memory inside the head engine: in tiles of 64 columns, [tile][row][64], padded with zeros.
//
// 64 is one number for three things: the columns that one register block of products holds, the rows of a panel that
// stays in the first-level cache (16 KB), and the bits of a word that says which of those rows take part.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastclf::cpu {

constexpr size_t kTile = 64;

constexpr size_t tiles(size_t n) { return (n + kTile - 1) / kTile; }

// The columns (or rows) of 0..n-1 that lie in tile t.
constexpr size_t tile_width(size_t n, size_t t) { return n - t * kTile < kTile ? n - t * kTile : kTile; }

// The lowest n bits, n <= 64.
constexpr uint64_t low_bits(size_t n) { return n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1; }

// Memory on cache-line borders, zeroed, or as it comes (`unset`): for a thread that is to touch it first.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t n) : data_(new (std::align_val_t{64}) T[n]()) {}
  static Buffer unset(size_t n) {
    Buffer buffer;
    buffer.data_.reset(new (std::align_val_t{64}) T[n]);
    return buffer;
  }
  T* get() const { return data_.get(); }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  struct Delete {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<T[], Delete> data_;
};

}  // namespace fastclf::cpu
