// Work in parts, by the calling thread and others.
//
// Where torch's operators run between passes the others are OpenMP's: those are at hand, and watch
// for work for milliseconds, so that threads of our own would find no core. In a server, once
// `share_cores` is called, they are a team that helps where its threads get to run: nobody waits for
// one that has not begun a part. OpenMP's regions end when each of their threads has come; where an
// event loop uses the cores too, the slowest to be scheduled holds up a pass some forty times.
#pragma once

#include <ATen/Parallel.h>
#include <omp.h>
#include <pthread.h>
#ifdef __linux__
#include <sys/resource.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

namespace labelmux {

// Of the calling thread: how many take part in its work; 0: as many as torch says.
inline thread_local int64_t own_threads = 0;
// Whether each of them gets parts of its own, so that what is compiled for a thread is compiled.
inline thread_local bool takes_turns = false;

inline int64_t thread_count() { return own_threads ? own_threads : at::get_num_threads(); }

// While it lives, the calling thread's work takes `count` threads, and torch's operators take one.
class Threads {
 public:
  explicit Threads(int64_t count)
      : count_(own_threads), of_torch_(at::get_num_threads()) {
    own_threads = count;
    if (of_torch_ != 1) omp_set_num_threads(1);
  }
  ~Threads() {
    own_threads = count_;
    if (of_torch_ != 1) omp_set_num_threads(of_torch_);
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  const int64_t count_;
  const int of_torch_;
};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Whether `ready` came true before so much time was over; after `alone` of it, others go first.
template <typename F>
bool watch(std::chrono::microseconds alone, std::chrono::microseconds most, const F& ready) {
  const auto begun = std::chrono::steady_clock::now();
  std::chrono::steady_clock::duration passed{};
  do {
    for (int turn = 0; turn < 32; ++turn) {
      if (ready()) return true;
      pause();
    }
    if (passed > alone) std::this_thread::yield();
    passed = std::chrono::steady_clock::now() - begun;
  } while (passed < most);
  return false;
}

// The process's threads that help, one caller at a time.
class Team {
 public:
  static constexpr int64_t kMostParts = 1024;

  // One thread's way through a job. The caller is thread 0.
  struct Turn {
    uint32_t job;
    int64_t thread;
    int64_t threads;
    int64_t parts;
    // Nobody takes what is another's.
    bool in_turn;
    int64_t step = 0;
  };
  // Takes parts until none is left.
  using Run = void (*)(void* work, Team& team, Turn turn);

  static Team& of_process() {
    // Never destroyed: its threads end with the process.
    static Team* team = new Team;
    return *team;
  }

  // By as many threads as there are parts, of those that the caller has. False where another caller
  // has the team; nothing has run then.
  bool run(Run run, void* work, int64_t parts, int64_t callers, bool in_turn) {
    if (busy_.exchange(true)) return false;
    callers = 1 + grow(std::min(callers, kMostThreads) - 1);
    if (wanted_.load(std::memory_order_relaxed) != callers) {
      wanted_.store(callers);
      wanted_.notify_all();
    }
    const int64_t threads = std::min(parts, callers);
    run_.store(run, std::memory_order_relaxed);
    work_.store(work, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const Turn turn{++job_, 0, threads, parts, in_turn};
    state_.store(state_of(turn));
    if (sleeping_.load() != 0) {
      bell_.fetch_add(1);
      bell_.notify_all();
    }
    run(work, *this, turn);
    wait_for(static_cast<uint32_t>(parts));
    busy_.store(false);
    return true;
  }

  // The next part for a thread, or -1: its own first, which are the same in every job of as many
  // parts, so that its cache has their weights; then what others have not begun.
  int64_t claim(Turn& turn) {
    const int64_t own = (turn.parts - turn.thread + turn.threads - 1) / turn.threads;
    const int64_t steps = turn.in_turn ? own : own + turn.parts;
    while (turn.step < steps) {
      const int64_t step = turn.step++;
      const int64_t part = step < own ? turn.thread + step * turn.threads
                                      : (turn.thread + 1 + step - own) % turn.parts;
      // The last job that had a part of this number. A job of which a part is left is under way,
      // so whoever gets one has read what is that job's own.
      uint32_t had = claims_[part].load(std::memory_order_relaxed);
      if (static_cast<int32_t>(turn.job - had) > 0 &&
          claims_[part].compare_exchange_strong(had, turn.job, std::memory_order_acq_rel)) {
        return part;
      }
    }
    return -1;
  }

  // From now on the team is there for all callers, and gives way to others so much; or it is not.
  void share_cores(bool whether, int niceness) {
    niceness_.store(niceness);
    serves_.store(whether);
  }

  bool serves() const { return serves_.load(std::memory_order_relaxed); }

  // A part is done.
  void finish() {
    done_.fetch_add(1);
    if (waiting_.load()) done_.notify_all();
  }

 private:
  // How long a thread watches for the next job, and the caller for the end of one, before it sleeps.
  // From one job of a pass to the next it is less than the first, from pass to pass than the second.
  static constexpr std::chrono::microseconds kAlert{50}, kLinger{2000}, kPatience{30};
  static constexpr int64_t kMostThreads = 1023;
  // A job's number, whether its threads take turns, how many there are, and of how many parts.
  static constexpr int kJobBits = 32, kInTurnBit = 31, kThreadBits = 16, kPartMask = 0xffff;

  static uint64_t state_of(const Turn& turn) {
    return uint64_t{turn.job} << kJobBits | uint64_t{turn.in_turn} << kInTurnBit |
           static_cast<uint64_t>(turn.threads << kThreadBits | turn.parts);
  }

  // As many helpers as there are of those wanted.
  int64_t grow(int64_t wanted) {
    static std::once_flag once;
    std::call_once(once, [] {
      pthread_atfork(nullptr, nullptr, [] { of_process().forget(); });
    });
    try {
      for (; helpers_ < wanted; ++helpers_) {
        std::thread(&Team::help, this, helpers_ + 1, job_).detach();
      }
    } catch (const std::system_error&) {
    }
    return std::min(wanted, helpers_);
  }

  // A child process has none of the threads.
  void forget() {
    helpers_ = 0;
    busy_ = false;
    sleeping_ = 0;
  }

  void help(int64_t thread, uint32_t seen) {
    const Threads alone(1);
    for (int niceness = 0;;) {
#ifdef __linux__  // elsewhere it is the whole process's
      if (niceness != niceness_.load(std::memory_order_relaxed)) {
        niceness = niceness_.load(std::memory_order_relaxed);
        setpriority(PRIO_PROCESS, 0, niceness);
      }
#endif
      // Whom the caller has no use for leaves the core to others.
      if (const int64_t wanted = wanted_.load(); thread >= wanted) {
        wanted_.wait(wanted);
        continue;
      }
      const auto news = [&] { return state_.load(std::memory_order_acquire) >> kJobBits != seen; };
      if (!watch(kAlert, kLinger, news)) {
        const uint32_t bell = bell_.load();
        sleeping_.fetch_add(1);
        if (!news()) bell_.wait(bell);
        sleeping_.fetch_sub(1);
        continue;
      }
      const uint64_t state = state_.load(std::memory_order_acquire);
      seen = static_cast<uint32_t>(state >> kJobBits);
      const auto threads = static_cast<int64_t>(state >> kThreadBits & kMostThreads);
      const auto parts = static_cast<int64_t>(state & kPartMask);
      if (thread < threads) {
        run_.load(std::memory_order_relaxed)(
            work_.load(std::memory_order_relaxed), *this,
            {seen, thread, threads, parts, (state >> kInTurnBit & 1) != 0});
      }
    }
  }

  void wait_for(uint32_t parts) {
    if (watch(kPatience, kPatience, [&] { return done_.load(std::memory_order_acquire) == parts; })) return;
    // Asleep, so that a helper which waits for a core may have this one.
    waiting_.store(true);
    for (uint32_t done = done_.load(); done != parts; done = done_.load()) done_.wait(done);
    waiting_.store(false);
  }

  std::atomic<bool> busy_{false};
  int64_t helpers_ = 0;
  uint32_t job_ = 0;
  std::atomic<Run> run_{nullptr};
  std::atomic<void*> work_{nullptr};
  std::atomic<uint32_t> claims_[kMostParts] = {};
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<bool> waiting_{false};
  alignas(64) std::atomic<uint32_t> bell_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<int64_t> wanted_{0};
  std::atomic<int> niceness_{0};
  std::atomic<bool> serves_{false};
};

// All parts of one piece of work; what a part throws comes out of `finish`.
template <typename State, typename F>
class Job {
 public:
  Job(const F& f, int64_t count) : f_(f), count_(count) {}

  void finish() const {
    if (error_) std::rethrow_exception(error_);
  }

  // False where another caller has the team.
  bool by_team(int64_t threads) {
    const bool in_turn = takes_turns;
    const Threads alone(1);
    const auto run = [](void* job, Team& team, Team::Turn turn) {
      static_cast<Job*>(job)->take(team, turn);
    };
    return Team::of_process().run(run, this, std::min(count_, Team::kMostParts), threads, in_turn);
  }

  // Few parts lie with the same thread every time, whose cache then has their weights. With as many
  // threads every time, too: OpenMP ends those that one region does not need, and makes them anew.
  void by_openmp(int64_t threads) {
    const bool few = count_ <= threads;
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
      const Threads alone(1);
      std::optional<State> state;
      if (few && omp_get_num_threads() == threads) {
        if (omp_get_thread_num() < count_) part(omp_get_thread_num(), state);
      } else {
#pragma omp for schedule(dynamic, 1)
        for (int64_t at = 0; at < count_; ++at) part(at, state);
      }
    }
  }

 private:
  // After its last part is told to be done, nothing of the job may be touched.
  void take(Team& team, Team::Turn turn) {
    std::optional<State> state;
    for (int64_t place; (place = team.claim(turn)) >= 0; team.finish()) {
      const int64_t end = count_ * (place + 1) / turn.parts;
      for (int64_t at = count_ * place / turn.parts; at < end; ++at) part(at, state);
    }
  }

  void part(int64_t at, std::optional<State>& state) {
    try {
      if (!state) state.emplace();
      f_(at, *state);
    } catch (...) {
      const std::lock_guard lock(errors_);
      error_ = std::current_exception();
    }
  }

  const F& f_;
  const int64_t count_;
  std::exception_ptr error_;
  std::mutex errors_;
};

// f(part, state) for every part, with a state of each thread's own; what one throws comes out here.
template <typename State, typename F>
void run_parts(int64_t count, const F& f) {
  const int64_t threads = thread_count();
  if (std::min(count, threads) > 1) {
    Job<State, F> job(f, count);
    const bool served = Team::of_process().serves();
    if (!served) job.by_openmp(threads);
    if (!served || job.by_team(threads)) return job.finish();
  }
  State state;
  for (int64_t part = 0; part < count; ++part) f(part, state);
}

// f(begin, end) over [0, size) in a range for each thread, of `grain` at least.
template <typename F>
void run_ranges(int64_t size, int64_t grain, const F& f) {
  struct Nothing {};
  const int64_t parts = std::clamp<int64_t>(size / grain, 1, thread_count());
  run_parts<Nothing>(size ? parts : 0, [&](int64_t part, Nothing&) {
    f(size * part / parts, size * (part + 1) / parts);
  });
}

}  // namespace labelmux
