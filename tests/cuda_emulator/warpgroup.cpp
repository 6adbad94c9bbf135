// The emulator's part for sm_90a: barriers that bytes arrive at, boxes copied into swizzled shared
// memory, and the products of a warpgroup. All are done as late as they may be, so that what does not
// wait for them comes out wrong.

#include <cstring>

#include "cuda_emulator/execution.h"

namespace minifuse::cuda::emulator {

namespace {

// The 16-byte piece at an address within boxes is elsewhere: bits of its row are added to its place.
size_t swizzled(size_t address, int row_bytes) {
  return address ^ ((address >> 7 & (row_bytes == 128 ? 7 : 3)) << 4);
}

// All threads of the warpgroup meet here, as the lanes of a warp do in collective().
void warpgroup_collective(const char* name, void* operands, void (*execute)(Warpgroup& group)) {
  Execution& e = *running;
  if (e.num_threads % 128 != 0) fault(std::string(name) + " in a block that ends within a group");
  Warpgroup& group = e.warpgroup();
  if (group.num_waiting == 0) group.instruction = name;
  if (std::strcmp(group.instruction, name) != 0)
    fault(std::string("warps of a group part: ") + name + " here, others at " + group.instruction);
  group.operands[e.current % 128] = operands;
  if (++group.num_waiting < 128) {
    e.thread().waits_for_warpgroup = true;
    e.thread().generation = group.generation;
    e.suspend();
    return;
  }
  execute(group);
  count(name);
  group.num_waiting = 0;
  ++group.generation;
}

Arrival& arrival_at(const void* at) {
  const auto found = running->arrivals.find(at);
  if (found == running->arrivals.end()) fault("an arrival that was never made");
  Arrival& arrival = found->second;
  if (arrival.epoch == running->block_epoch && arrival.maker != running->current)
    fault("an arrival that no barrier has shown to this thread");
  return arrival;
}

}  // namespace

void make_arrival(const void* at, int count) {
  running->write(at, 8);
  running->arrivals[at] = {count, count, 0, 0, running->current, running->block_epoch};
}

void arrive_expecting(const void* at, int num_bytes) {
  Arrival& arrival = arrival_at(at);
  if (arrival.num_missing == 0) fault("more threads arrive than were announced");
  --arrival.num_missing;
  arrival.bytes_missing += num_bytes;
}

// Returns whether the phase of this parity has ended, or may end now.
bool Execution::can_end(const void* at, int parity) const {
  const Arrival& arrival = arrivals.at(at);
  if (arrival.phase % 2 != parity) return true;
  if (arrival.num_missing > 0) return false;
  int64_t num_bytes = 0;
  for (const BoxCopy& box : boxes)
    if (box.arrival == at) num_bytes += int64_t{2} * box.map.box_columns * box.map.box_rows;
  return num_bytes == arrival.bytes_missing;
}

// Boxes land as late as they may: when the last thread has arrived and somebody asks.
void Execution::end(const void* at) {
  Arrival& arrival = arrivals.at(at);
  for (const BoxCopy& box : boxes)
    if (box.arrival == at) deliver(box);
  std::erase_if(boxes, [&](const BoxCopy& box) { return box.arrival == at; });
  arrival.bytes_missing = 0;
  arrival.num_missing = arrival.count;
  ++arrival.phase;
}

void wait_for_arrival(const void* at, int parity) {
  Execution& e = *running;
  arrival_at(at);
  if (!e.can_end(at, parity)) {
    e.thread().arrival = at;
    e.thread().parity = parity;
    e.suspend();
  }
  if (e.arrivals.at(at).phase % 2 == parity) e.end(at);
}

void copy_box(void* shared, const TensorMap& map, int column, int row, const void* at) {
  Execution& e = *running;
  arrival_at(at);
  const size_t offset = static_cast<size_t>(static_cast<const std::byte*>(shared) - e.shared.begin);
  if (offset % 1024 != 0) fault("a box is not at a multiple of 1,024 bytes");
  if ((map.box_columns != 64 && map.box_columns != 32) || map.box_rows > 256)
    fault("a box of another shape");
  const size_t size = static_cast<size_t>(2 * map.box_columns * map.box_rows);
  for (size_t byte = 0; byte < size; byte += 16)
    e.write(static_cast<std::byte*>(shared) + byte, 16);
  Execution::each_shadow(e.shared, shared, size, [](Shadow& s, size_t) { s.is_arriving = true; });
  e.boxes.push_back({static_cast<std::byte*>(shared), map, column, row, at});
  count("box");
}

void Execution::deliver(const BoxCopy& box) {
  const size_t base = static_cast<size_t>(box.to - shared.begin);
  auto* memory = const_cast<std::byte*>(shared.begin);
  const int row_bytes = 2 * box.map.box_columns;
  for (int r = 0; r < box.map.box_rows; ++r) {
    std::byte values[128] = {};
    const int64_t columns =
        std::clamp<int64_t>(box.map.num_columns - box.column, 0, box.map.box_columns);
    if (box.row + r >= 0 && box.row + r < box.map.num_rows && columns > 0) {
      const std::byte* from =
          box.map.data + (box.row + r) * box.map.stride_bytes + 2 * int64_t{box.column};
      const auto size = static_cast<size_t>(2 * columns);
      read(from, size, true);
      std::memcpy(values, from, size);
    }
    for (int piece = 0; piece < row_bytes; piece += 16)
      std::memcpy(memory + swizzled(base + static_cast<size_t>(r * row_bytes + piece), row_bytes),
                  values + piece, 16);
  }
  each_shadow(shared, box.to, static_cast<size_t>(box.map.box_rows * row_bytes),
              [](Shadow& s, size_t) {
                s.is_arriving = false;
                s.is_of_box = true;
                s.write = {};  // the arrival orders it
              });
}

// Calls f(address) with the 16-byte pieces of shared memory that a product reads.
template <typename F>
void Execution::each_piece(const Product& product, F f) {
  const auto rows = [&](const BoxPlace& place, int num_rows) {
    for (int row = 0; row < num_rows; ++row)
      for (int piece = 0; piece < 2; ++piece)
        f(const_cast<std::byte*>(shared.begin) +
          swizzled(place.offset + static_cast<size_t>(row * place.row_bytes + 16 * piece),
                   place.row_bytes));
  };
  if (!product.a_registers) rows(product.a, 64);
  rows(product.b, 8 * product.num_tiles);
}

void start_product(const Product& mine) {
  Product part = mine;
  warpgroup_collective("wgmma", &part, [](Warpgroup& group) {
    Execution& e = *running;
    Warpgroup::Started started{{}, group.num_committed};
    for (size_t i = 0; i < 128; ++i) {
      started.parts[i] = *static_cast<const Product*>(group.operands[i]);
      const Product &one = started.parts[i], &first = started.parts[0];
      if (one.a != first.a || one.b != first.b || one.num_tiles != first.num_tiles ||
          one.adds != first.adds)
        fault("threads of a warpgroup give different operands to a product");
    }
    e.each_piece(started.parts[0], [&](std::byte* p) {
      e.read(p, 16, true);
      Execution::each_shadow(e.shared, p, 16, [&](Shadow& s, size_t offset) {
        if (!s.is_of_box) fault("a product reads what no box wrote" + e.where(e.shared, offset));
        ++s.num_products;
      });
    });
    group.started.push_back(std::move(started));
  });
}

void warpgroup_commit() {
  warpgroup_collective("wgmma.commit", nullptr, [](Warpgroup& group) { ++group.num_committed; });
}

// A product is done as late as it may be: what a thread reads or changes before comes out wrong.
void warpgroup_wait(int most_pending) {
  Execution& e = *running;
  Warpgroup& group = e.warpgroup();
  while (!group.started.empty() &&
         group.started.front().group < group.num_committed - most_pending) {
    e.run_product(group.started.front());
    group.started.pop_front();
  }
}

// The fragment maps of ptx.cuh: warp w has rows 16 w.., as an mma's.
void Execution::run_product(const Warpgroup::Started& product) {
  const Product& first = product.parts[0];
  const auto value_at = [&](const BoxPlace& place, int row, int k) {
    uint16_t bits;
    const size_t at = place.offset + static_cast<size_t>(row * place.row_bytes + 2 * k);
    std::memcpy(&bits, shared.begin + swizzled(at, place.row_bytes), 2);
    return first.value_of(bits);
  };
  double a[64][16];
  for (size_t i = 0; i < 128 && first.a_registers; ++i) {
    const int row = static_cast<int>(i / 32 * 16 + i % 32 / 4), k = static_cast<int>(2 * (i % 4));
    for (int r = 0; r < 4; ++r)
      for (int e = 0; e < 2; ++e)
        a[row + 8 * (r % 2)][k + e + 8 * (r / 2)] = first.value_of(
            static_cast<uint16_t>(product.parts[i].a_registers[r] >> (16 * e) & 0xffff));
  }
  for (int row = 0; row < 64 && !first.a_registers; ++row)
    for (int k = 0; k < 16; ++k) a[row][k] = value_at(first.a, row, k);
  std::vector<std::array<double, 16>> b(static_cast<size_t>(8 * first.num_tiles));
  for (size_t column = 0; column < b.size(); ++column)
    for (size_t k = 0; k < 16; ++k)
      b[column][k] = value_at(first.b, static_cast<int>(column), static_cast<int>(k));
  for (size_t i = 0; i < 128; ++i) {
    const size_t row = i / 32 * 16 + i % 32 / 4, column = 2 * (i % 4);
    for (int n = 0; n < first.num_tiles; ++n)
      for (size_t r = 0; r < 4; ++r) {
        float& d = product.parts[i].d[n][r];
        double sum = first.adds ? d : 0.0;
        for (size_t k = 0; k < 16; ++k)
          sum += a[row + 8 * (r / 2)][k] * b[8 * static_cast<size_t>(n) + column + r % 2][k];
        d = static_cast<float>(sum);
      }
  }
  each_piece(first, [&](std::byte* p) {
    each_shadow(shared, p, 16, [&](Shadow& s, size_t) {
      --s.num_products;
      note(s.read, true, true);
      s.read.warp = Shadow::kSeveral;  // of four warps: a barrier of one does not order it
    });
  });
}

}  // namespace minifuse::cuda::emulator
