#include "threads/machine.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace minifuse {
namespace {

// CPUs' worth of quota, rounded up; 0 where there is no limit. cgroup v2, then v1.
int cgroup_quota() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0)
    return std::max(1, static_cast<int>(std::ceil(std::atof(quota.c_str()) / period)));
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double limit = -1;
  if (v1_quota >> limit && v1_period >> period && limit > 0 && period > 0)
    return std::max(1, static_cast<int>(std::ceil(limit / period)));
  return 0;
}

// Physical cores among the CPUs that this process may use: siblings share one multiplier.
int physical_cores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 0;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    std::ifstream file(topology + "thread_siblings_list");
    std::string siblings;
    if (!(file >> siblings)) return 0;
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
#else
  return 0;
#endif
}

}  // namespace

int num_usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

int default_num_threads() {
  int count = num_usable_cpus();
  const auto limit = [&count](int other) {
    if (other > 0) count = std::min(count, other);
  };
  limit(cgroup_quota());
  limit(physical_cores());
  if (const char* omp = std::getenv("OMP_NUM_THREADS")) limit(std::atoi(omp));
  return count;
}

int64_t l2_cache_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return std::max<int64_t>(0, sysconf(_SC_LEVEL2_CACHE_SIZE));
#else
  return 0;
#endif
}

}  // namespace minifuse
