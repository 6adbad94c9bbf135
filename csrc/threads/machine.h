// The machine as threads see it: CPUs, quotas and caches.
#pragma once

#include <cstdint>

namespace minifuse {

// CPUs that this process may run on; at least 1.
int num_usable_cpus();

// The least of CPU affinity, the cgroup's CPU quota, OMP_NUM_THREADS and physical cores; at least 1.
int default_num_threads();

// Returns the size of the first core's L2 cache; 0 where the system does not say.
int64_t l2_cache_bytes();

}  // namespace minifuse
