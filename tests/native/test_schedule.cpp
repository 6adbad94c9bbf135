// The plan of a batch, the barrier, and the pool: turns, exceptions, stopping, restarting.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include "common/types.h"
#include "model/plan.h"
#include "threads/barrier.h"
#include "threads/pool.h"
#include "expect.h"

using namespace minifuse;
using namespace minifuse::test;

namespace {

std::vector<int32_t> offsets_of(const std::vector<int>& seqlens) {
  std::vector<int32_t> offsets{0};
  for (const int seqlen : seqlens) offsets.push_back(offsets.back() + seqlen);
  return offsets;
}

void test_block_sizes() {
  for (const int64_t l2_bytes :
       {int64_t{0}, int64_t{1} << 18, int64_t{1} << 19, int64_t{1} << 20, int64_t{1} << 22}) {
    const BlockSizes blocks = block_sizes(l2_bytes);
    EXPECT(blocks.ffn_rows > 0 && blocks.ffn_rows <= blocks.chunk_tokens, "L2 of %ld",
           long(l2_bytes));
  }
  EXPECT(block_sizes(1 << 19).chunk_tokens < block_sizes(1 << 20).chunk_tokens, "not by L2");
  EXPECT(block_sizes(0).chunk_tokens == block_sizes(1 << 20).chunk_tokens, "unknown is not small");
}

void test_block_of() {
  for (const int64_t most : {48, 96, 192}) {
    for (const int64_t multiple : {1, 6, 12}) {
      for (int64_t total = 1; total <= 600; ++total) {
        const int64_t block = block_of(total, most, multiple);
        EXPECT(block > 0 && block <= most, "%ld in blocks of %ld", long(total), long(block));
        // As few blocks as `most` allows, and none much smaller than the others.
        const int64_t num_blocks = (total + block - 1) / block;
        const int64_t last = total - (num_blocks - 1) * block;
        EXPECT(num_blocks <= (total + most - 1) / most, "%ld in %ld blocks", long(total),
               long(num_blocks));
        EXPECT(num_blocks == 1 || block - last < num_blocks * multiple,
               "a remainder of %ld beside %ld", long(last), long(block));
      }
    }
  }
}

// MiniLM's, roughly: a token, a pair, the fetch of the weights, a team's meetings.
constexpr CostModel kCosts{2.1e7, 9e3, 2.1e8, 4.5e6};

Schedule plan(const std::vector<int>& seqlens, int64_t max_sentences, int64_t chunk_tokens,
              int num_threads, std::vector<Schedule>* considered = nullptr) {
  return plan_schedule(offsets_of(seqlens).data(), static_cast<int64_t>(seqlens.size()),
                       max_sentences, chunk_tokens, num_threads, kCosts, considered);
}

void test_plan() {
  std::mt19937 generator(1);
  for (int round = 0; round < 300; ++round) {
    std::vector<int> seqlens(generator() % 60);
    for (int& seqlen : seqlens) seqlen = static_cast<int>(generator() % (round % 7 ? 40 : 513));
    const std::vector<int32_t> offsets = offsets_of(seqlens);
    const int64_t most = 1 + static_cast<int64_t>(generator() % 9);
    const int64_t tokens = block_sizes(round % 2 ? 1 << 19 : 1 << 21).chunk_tokens;
    const int threads = 1 + static_cast<int>(generator() % 8);
    std::vector<Schedule> considered;
    const Schedule schedule = plan(seqlens, most, tokens, threads, &considered);
    EXPECT(schedule.num_chunks == static_cast<int64_t>(schedule.chunks.size()), "a wrong count");
    EXPECT(threads > 1 || schedule.num_shared_chunks == 0, "one thread cannot share");
    for (const Schedule& other : considered)
      EXPECT(schedule.cost <= 1.02 * other.cost, "%g was cheaper", other.cost);

    std::vector<Chunk> chunks = schedule.chunks;
    std::sort(chunks.begin(), chunks.end(),
              [](const Chunk& a, const Chunk& b) { return a.first < b.first; });
    int64_t next = 0;
    for (const Chunk& chunk : chunks) {
      EXPECT(chunk.first == next && chunk.last > chunk.first, "a gap at %d", int(next));
      EXPECT(chunk.last - chunk.first <= most, "%d sentences", int(chunk.last - chunk.first));
      EXPECT(chunk.last == chunk.first + 1 || offsets[static_cast<size_t>(chunk.last)] -
                                                      offsets[static_cast<size_t>(chunk.first)] <=
                                                  schedule.chunk_tokens,
             "a chunk too large at %d", int(next));
      next = chunk.last;
    }
    EXPECT(next == static_cast<int64_t>(seqlens.size()), "%d of %d sentences", int(next),
           int(seqlens.size()));
    const Schedule again = plan(seqlens, most, tokens, threads);
    EXPECT(again.num_shared_chunks == schedule.num_shared_chunks &&
               std::equal(again.chunks.begin(), again.chunks.end(), schedule.chunks.begin(),
                          schedule.chunks.end(),
                          [](const Chunk& a, const Chunk& b) {
                            return a.first == b.first && a.last == b.last;
                          }),
           "not a pure function");
  }
}

// Time of the threads relative to an even division of the time of one; sharing itself costs
// 18 % (kSharedEfficiency).
double idle_share(const std::vector<int>& seqlens, int num_threads) {
  const Schedule schedule = plan(seqlens, 32, 96, num_threads);
  const Schedule alone = plan(seqlens, 32, 96, 1);
  return schedule.cost * num_threads / alone.cost - 1;
}

void test_the_threads_end_together() {
  EXPECT(plan({12}, 32, 96, 2).num_shared_chunks == 1, "a query is for all threads");
  EXPECT(plan({500, 3}, 32, 96, 2).num_shared_chunks > 0, "one thread would wait for the other");
  EXPECT(plan(std::vector<int>(1000, 16), 32, 96, 2).num_shared_chunks == 0, "many need no team");
  std::vector<int> mixed(40, 3);
  mixed.insert(mixed.begin(), {500, 480, 300});
  for (const int threads : {2, 3, 4})
    EXPECT(idle_share(mixed, threads) < 0.25, "%g idle", idle_share(mixed, threads));
  for (const auto& seqlens : {std::vector<int>{200, 200, 200}, {500, 3, 3, 3}, {90, 60, 30}})
    EXPECT(idle_share(seqlens, 2) < 0.25, "%g idle", idle_share(seqlens, 2));
}

void test_barrier() {
  constexpr int kMembers = 4, kRounds = 2000;
  SpinBarrier barrier;
  std::vector<int> counts(kMembers, 0);
  std::vector<std::thread> threads;
  for (int member = 0; member < kMembers; ++member) {
    threads.emplace_back([&, member] {
      for (int round = 0; round < kRounds; ++round) {
        ++counts[static_cast<size_t>(member)];
        barrier.wait(kMembers);
        for (const int count : counts) EXPECT(count == round + 1, "a member ran ahead");
        barrier.wait(kMembers);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

void test_pool() {
  ThreadPool& pool = ThreadPool::get();
  for (int round = 0; round < 200; ++round) {
    std::vector<int> seen(4, 0);
    std::atomic<int> size{0};
    EXPECT(pool.run(4,
                    [&](int member, int members) {
                      ++seen[static_cast<size_t>(member)];
                      size = members;
                    }),
           "stopped");
    EXPECT(std::accumulate(seen.begin(), seen.end(), 0) == size, "%d members", size.load());
  }
  for (const int thrower : {0, 1}) {
    try {
      pool.run(2, [&](int member, int members) {
        if (member == thrower || members == 1) throw std::runtime_error("on purpose");
      });
      EXPECT(false, "the exception of member %d was lost", thrower);
    } catch (const std::runtime_error& error) {
      EXPECT(std::string(error.what()) == "on purpose", "%s", error.what());
    }
  }
  // Many callers at once: each runs whole, and none for ever.
  std::atomic<int> done{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round)
        pool.run(3, [&](int member, int) { done += member == 0; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT(done == 800, "%d of 800", done.load());

  // A caller that waits for its turn can be told to give up.
  std::atomic<bool> release{false}, started{false};
  std::thread holder([&] {
    pool.run(64, [&](int, int) {
      started = true;
      while (!release) std::this_thread::yield();
    });
  });
  while (!started) std::this_thread::yield();
  const bool ran = pool.run(1, [](int, int) {}, [] { return true; });
  release = true;
  holder.join();
  EXPECT(!ran, "ran although the pool was full");

  // A caller that has done its part asks on, and what it hears ends the others' work.
  {
    std::atomic<bool> is_stopped{false};
    int asked = 0;
    ThreadPool::Turn turn(pool, 2, {});
    turn.run(
        [&](int member, int members) {
          const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
          while (member + 1 == members && members > 1 && !is_stopped &&
                 std::chrono::steady_clock::now() < until)
            std::this_thread::yield();
        },
        [&] { is_stopped = ++asked == 3; });
    EXPECT(turn.num_members() == 1 || is_stopped, "asked %d times", asked);
  }

  pool.shutdown();
  std::atomic<int> members{0};
  pool.run(3, [&](int, int) { ++members; });
  EXPECT(members >= 1, "no restart");
  pool.shutdown();

  // A worker may still be telling its caller that it is done.
  for (int round = 0; round < 20000; ++round) {
    pool.run(2, [&](int, int) {});
    pool.shutdown();
  }
}

}  // namespace

int main() {
  EXPECT(default_num_threads() >= 1, "no thread");
  test_block_sizes();
  test_block_of();
  test_plan();
  test_the_threads_end_together();
  test_barrier();
  test_pool();
  std::printf("schedule, barrier and pool hold\n");
  return 0;
}
