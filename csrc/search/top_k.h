// The k best of a stream of scores, ties broken by the lower id: a heap with the worst one on top.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace minifuse {

struct Hit {
  float score;
  int64_t id;

  // Better: a higher score, or an equal one of a lower id.
  bool operator<(const Hit& other) const {
    return score > other.score || (score == other.score && id < other.id);
  }
};

class TopK {
 public:
  explicit TopK(int64_t k) : k_(static_cast<size_t>(k)) {}

  // Returns the score that a hit must exceed to be kept, where ids come in ascending order.
  float threshold() const {
    return hits_.size() < k_ ? -std::numeric_limits<float>::infinity() : hits_.front().score;
  }

  void offer(Hit hit) {
    if (hits_.size() == k_) {
      if (k_ == 0 || !(hit < hits_.front())) return;
      std::pop_heap(hits_.begin(), hits_.end());
      hits_.back() = hit;
    } else {
      hits_.push_back(hit);
    }
    std::push_heap(hits_.begin(), hits_.end());
  }

  void merge(const TopK& other) {
    for (const Hit& hit : other.hits_) offer(hit);
  }

  // Best first.
  std::vector<Hit> sorted() const {
    std::vector<Hit> hits = hits_;
    std::sort(hits.begin(), hits.end());
    return hits;
  }

 private:
  size_t k_;
  std::vector<Hit> hits_;
};

}  // namespace minifuse
