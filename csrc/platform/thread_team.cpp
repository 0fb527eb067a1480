#include "platform/thread_team.h"

#include "platform/process_memory.h"
#include "platform/threads.h"

namespace tensorstream {
namespace {

/// As ThreadTeam::share(), on the calling thread.
void work_alone(std::size_t count, const std::function<void(std::size_t)>& work) {
  std::exception_ptr first;
  for (std::size_t number = 0; number < count; ++number) {
    try {
      work(number);
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace

std::shared_ptr<ThreadTeam> ThreadTeam::create(std::size_t threads) {
  return share_at_home(std::unique_ptr<ThreadTeam>(new ThreadTeam(threads)));
}

ThreadTeam::ThreadTeam(std::size_t threads) : helpers_(threads), process_(process_id()) {}

ThreadTeam::~ThreadTeam() {
  {
    const MutexLock lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  threads_.clear();
}

void ThreadTeam::start() noexcept {
  started_ = true;
  threads_ = start_helpers(helpers_ + 1, "work is shared", [this] { run(); });
}

void ThreadTeam::share(std::size_t count, const std::function<void(std::size_t)>& work) {
  // A thread of the parent's may have had a lock as it was forked.
  if (process_ != process_id()) {  // guard: team-of-the-parent
    work_alone(count, work);
    return;
  }
  const MutexLock use(use_);
  Job job{count, &work, 0, 0, count, nullptr};
  MutexLock lock(mutex_);
  if (count > 1) {
    if (!started_) start();
    job_ = &job;
    changed_.notify_all();
  }
  work_on(job);
  while (job.under_way != 0) done_.wait(lock);  // guard: team-waits
  job_ = nullptr;
  if (job.error) std::rethrow_exception(job.error);
}

void ThreadTeam::run() {
  MutexLock lock(mutex_);
  while (!stopped_) {
    if (job_ == nullptr || job_->next == job_->count) {
      changed_.wait(lock);
    } else {
      work_on(*job_);
    }
  }
}

// The job goes once no call of it is under way: nobody looks at it after that.
void ThreadTeam::work_on(Job& job) {
  while (job.next < job.count) {
    const std::size_t number = job.next++;
    ++job.under_way;
    std::exception_ptr error;
    mutex_.unlock();
    try {
      (*job.work)(number);
    } catch (...) {
      error = std::current_exception();
    }
    mutex_.lock();
    --job.under_way;
    if (error && number < job.failed) {
      job.failed = number;
      job.error = error;
    }
    if (job.under_way == 0 && job.next == job.count) done_.notify_all();
  }
}

}  // namespace tensorstream
