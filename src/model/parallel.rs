//! Shares out work among threads that live for one call.
//!
//! candle's own operations use rayon, which is not at hand here; the calls that matter run for milliseconds, so
//! starting a thread for each is not felt. The number of threads is candle's, and which thread does what never
//! changes a result.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Below this many elementary operations a call stays on its own thread.
const WORTH_A_THREAD: usize = 1 << 18;

/// Calls `task` for each number below `n_tasks`; `cost` is the whole work in elementary operations.
pub(crate) fn for_each_task(n_tasks: usize, cost: usize, task: impl Fn(usize) + Sync) {
    let threads = threads_for(cost).min(n_tasks);
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let idx = next.fetch_add(1, Ordering::Relaxed);
            if idx >= n_tasks {
                return;
            }
            task(idx);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}

/// Calls `task` with each row of `out` and its number; `cost` is the work of one row.
pub(crate) fn for_each_row(
    out: &mut [f32],
    width: usize,
    cost: usize,
    task: impl Fn(usize, &mut [f32]) + Sync,
) {
    let n_rows = out.len() / width.max(1);
    let threads = threads_for(cost * n_rows).min(n_rows.max(1));
    let rows_each = n_rows.div_ceil(threads).max(1);
    let work = |share: usize, rows: &mut [f32]| {
        for (idx, row) in rows.chunks_exact_mut(width).enumerate() {
            task(share * rows_each + idx, row);
        }
    };
    std::thread::scope(|scope| {
        let mut shares = out.chunks_mut(rows_each * width.max(1)).enumerate();
        let first = shares.next();
        for (share, rows) in shares {
            scope.spawn(move || work(share, rows));
        }
        if let Some((share, rows)) = first {
            work(share, rows);
        }
    });
}

fn threads_for(cost: usize) -> usize {
    if cost < 2 * WORTH_A_THREAD { 1 } else { candle_core::utils::get_num_threads().max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_by_its_number() {
        for (rows, width, cost) in [(0, 3, 1), (1, 1, 1), (7, 3, 1), (5, 2, 1 << 20), (64, 5, 1 << 20)] {
            let mut out = vec![0.0; rows * width];
            for_each_row(&mut out, width, cost, |idx, row| {
                row.iter_mut().for_each(|v| *v += 1.0 + idx as f32)
            });
            let expected = |idx: usize| 1.0 + (idx / width) as f32;
            assert!(out.iter().enumerate().all(|(idx, v)| *v == expected(idx)), "{rows} {width}");
        }
    }

    #[test]
    fn every_task_runs_once() {
        for (n_tasks, cost) in [(0, 1 << 30), (1, 1 << 30), (9, 1), (100, 1 << 30)] {
            let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
            for_each_task(n_tasks, cost, |idx| {
                counts[idx].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}
