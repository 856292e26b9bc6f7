// Work in parts, a part for each thread at a time.
#pragma once

#include <cstdint>
#include <exception>

namespace labelmux {

// f(part, state) for every part, with a state of each thread's own; what one throws comes out here.
template <typename State, typename F>
void run_parts(int64_t count, const F& f) {
  std::exception_ptr error;
#pragma omp parallel if (count > 1)
  {
    State state;
#pragma omp for schedule(dynamic, 1)
    for (int64_t part = 0; part < count; ++part) {
      try {
        f(part, state);
      } catch (...) {
#pragma omp critical
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace labelmux
