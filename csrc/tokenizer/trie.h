// Strings of characters with their ids, as a tree: a walk goes down it character by character, and
// ends as soon as no string begins so. Every step is one search in a table of all branches.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "tokenizer/probe_table.h"

namespace minifuse {

class Trie {
 public:
  static constexpr int32_t kNone = std::numeric_limits<int32_t>::min();
  static constexpr uint32_t kRoot = 0;

  struct Node {
    uint32_t number = kRoot;
    int32_t id = kNone;  // of the string that ends here
  };

  // The last one of equal strings counts. An empty one is never met.
  template <typename Characters>
  void add(const Characters& characters, int32_t id) {
    Node* node = nullptr;
    uint32_t number = kRoot;
    for (const uint32_t c : characters) {
      node = &make_child(number, c);
      number = node->number;
    }
    if (node) node->id = id;
  }

  // The node behind the one of that number by way of c; nullptr: there is none.
  const Node* child(uint32_t number, uint32_t c) const {
    const uint64_t key = key_of(number, c);
    const Branch* const branch =
        branches_.find(hash_of(key), [key](const Branch& one) { return one.key == key; });
    return branch ? &branch->node : nullptr;
  }

  bool has_children(uint32_t number) const { return has_children_[number]; }

 private:
  struct Branch {
    static constexpr uint64_t kEmpty = ~uint64_t{0};
    uint64_t key = kEmpty;
    Node node;
    bool is_empty() const { return key == kEmpty; }
  };

  static uint64_t key_of(uint32_t number, uint32_t c) { return uint64_t{number} << 32 | c; }

  Node& make_child(uint32_t number, uint32_t c) {
    const uint64_t key = key_of(number, c);
    if (has_children_.size() > branches_.room())
      branches_.grow([](const Branch& branch) { return hash_of(branch.key); });
    Branch& branch =
        branches_.claim(hash_of(key), [key](const Branch& one) { return one.key == key; });
    if (branch.is_empty()) {
      branch = {key, {static_cast<uint32_t>(has_children_.size()), kNone}};
      has_children_.push_back(false);
      has_children_[number] = true;
    }
    return branch.node;
  }

  ProbeTable<Branch> branches_{0};
  std::vector<bool> has_children_ = {false};  // by number
};

}  // namespace minifuse
