//! Threads for the kernels: a fixed number of them, owned by whoever made the [`Pool`].
//!
//! A job is `n` numbered tasks. Each task is done exactly once, by whichever thread is free; tasks write to
//! disjoint places and take their sums inside, so who did what never shows in a result. There is no global
//! pool: two trials on one machine have two pools and never wait for each other.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A fixed set of threads that share out numbered tasks.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held while a job runs: a second caller, or a task that calls again, does its tasks itself.
    entry: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads - 1` threads; the caller of [`Pool::run`] is the remaining one. 0 counts as 1.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { round: 0, job: None, busy: 0, panic: None, closing: false }),
            start: Condvar::new(),
            done: Condvar::new(),
            next: AtomicUsize::new(0),
        });
        let workers = (1..threads.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("kernels-{index}"))
                    .spawn(move || shared.work())
                    .expect("the system can start a thread")
            })
            .collect();
        Self { shared, entry: Mutex::new(()), workers }
    }

    /// Number of threads that work on a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Does `task(0)` to `task(n_tasks - 1)`, in any order, and returns when all are done.
    ///
    /// A call from inside a task, or while another thread's job runs, does its tasks on the calling thread.
    ///
    /// # Panics
    /// When a task panics, with the same payload, after the others have ended.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = self.workers.is_empty() || n_tasks <= 1;
        let entry = if alone { None } else { self.entry.try_lock().ok() };
        if entry.is_none() {
            (0..n_tasks).for_each(task);
            return;
        }
        type Task<'a> = &'a (dyn Fn(usize) + Sync);
        // SAFETY: the job leaves `state` below, before this function returns and only after every worker
        // has counted itself out, so nobody uses the reference after its lifetime.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        let job = Job { task, n_tasks };
        self.shared.next.store(0, Ordering::Relaxed);
        {
            let mut state = self.shared.lock();
            state.round += 1;
            state.job = Some(job);
            state.busy = self.workers.len();
        }
        self.shared.start.notify_all();
        let own = self.shared.take_part(job);
        let mut state = self.shared.lock();
        while state.busy > 0 {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.job = None;
        let panic = own.err().or_else(|| state.panic.take());
        state.panic = None;
        drop(state);
        drop(entry);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.start.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches every panic of a task, so joining it cannot fail.
            worker.join().expect("invariant: workers do not panic");
        }
    }
}

#[derive(Clone, Copy)]
struct Job {
    task: &'static (dyn Fn(usize) + Sync),
    n_tasks: usize,
}

struct State {
    /// Counts jobs, so that a worker takes part in each once.
    round: u64,
    job: Option<Job>,
    /// Workers that have not yet finished with the job.
    busy: usize,
    panic: Option<Box<dyn Any + Send>>,
    closing: bool,
}

struct Shared {
    state: Mutex<State>,
    start: Condvar,
    done: Condvar,
    /// The next task that nobody has taken.
    next: AtomicUsize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes tasks until none is left. After a panic the rest of the tasks are abandoned.
    fn take_part(&self, job: Job) -> Result<(), Box<dyn Any + Send>> {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= job.n_tasks {
                    return;
                }
                (job.task)(index);
            }
        }));
        if outcome.is_err() {
            self.next.store(job.n_tasks, Ordering::Relaxed);
        }
        outcome
    }

    /// A worker's life.
    fn work(&self) {
        let mut seen = 0;
        loop {
            let job = {
                let mut state = self.lock();
                loop {
                    if state.closing {
                        return;
                    }
                    if state.round != seen {
                        seen = state.round;
                        break state.job.expect("invariant: a round has a job");
                    }
                    state = self.start.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let outcome = self.take_part(job);
            let mut state = self.lock();
            if let Err(payload) = outcome {
                state.panic = Some(payload);
            }
            state.busy -= 1;
            if state.busy == 0 {
                self.done.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_exactly_once() {
        for threads in 0..4 {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for n_tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, &|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_call_inside_a_task_does_not_wait_for_itself() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(5, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.load(Ordering::Relaxed), 20);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, &|index| assert_ne!(index, 5, "task five fails"));
            }));
            assert!(outcome.is_err());
            let count = AtomicUsize::new(0);
            pool.run(8, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 8);
        }
    }
}
