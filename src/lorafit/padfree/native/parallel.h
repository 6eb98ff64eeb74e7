// Tasks on all threads, and the memory that each thread keeps.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>
#include <vector>

#include "numbers.h"

namespace {

// A thread's own memory, kept from task to task.
template <class N>
struct Buffer {
  N* numbers = nullptr;
  long size = 0;
  N* of(long count) {
    if (count > size) {
      std::free(numbers);
      size = round_up(count * sizeof(N), 4096) / sizeof(N);
      numbers = (N*)std::aligned_alloc(4096, size * sizeof(N));
    }
    return numbers;
  }
  ~Buffer() { std::free(numbers); }
};

typedef void (*Launcher)(void (*)(void*), void*, unsigned, unsigned);

// Run task(0 .. tasks - 1) on `threads` threads: on the launcher's own (OpenMP's GOMP_parallel, whose threads torch
// keeps waiting already), else on new ones.
template <class Task>
void in_parallel(long tasks, long at_once, int threads, Launcher launcher, const Task& task) {
  struct Shared {
    std::atomic<long> next{0};
    long tasks, at_once;
    const Task* task;
  } shared;
  shared.at_once = at_once, shared.tasks = tasks, shared.task = &task;
  auto work = [](void* data) {
    Shared* mine = (Shared*)data;
    for (long n; (n = mine->next.fetch_add(mine->at_once)) < mine->tasks;)
      for (long m = n; m < std::min(mine->tasks, n + mine->at_once); m++) (*mine->task)(m);
  };
  threads = (int)std::min<long>(threads, tasks);
  if (threads <= 1) {
    work(&shared);
  } else if (launcher) {
    launcher(work, &shared, threads, 0);
  } else {
    std::vector<std::thread> others;
    for (int n = 1; n < threads; n++) others.emplace_back(work, &shared);
    work(&shared);
    for (auto& other : others) other.join();
  }
}

}  // namespace
