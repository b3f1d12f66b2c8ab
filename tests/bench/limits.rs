//! What this machine could do at best, measured: the limits that the benchmarks compare a step with.

use saesweep::kernels::{Pool, Shape};
use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// The two parts of the floor of a training step, in seconds: one dense encoder product at a `rate` in operations per
/// second, and one pass over parameters, of so many matrices, and two moments, read and written (24 bytes a
/// parameter), at a `bandwidth` in bytes per second.
pub(crate) fn floor(shape: Shape, matrices: f64, rate: f64, bandwidth: f64) -> [f64; 2] {
    let weights = (shape.d_in * shape.d_sae) as f64;
    [2.0 * weights * shape.batch as f64 / rate, 24.0 * matrices * weights / bandwidth]
}

/// Operations per second of a large f32 product with the `gemm` crate, shared out by columns.
pub(crate) fn product_rate(threads: usize) -> f64 {
    let (d_in, d_sae, batch) = (1024, 8192, 1024);
    let pool = Pool::new(threads);
    let (x, w) = (vec![0.5_f32; batch * d_in], vec![0.25_f32; d_sae * d_in]);
    let mut out = vec![0.0_f32; d_sae * batch];
    let secs = fastest_of(5, || {
        let share = d_sae / threads;
        let parts: Vec<Mutex<&mut [f32]>> = out.chunks_exact_mut(share * batch).map(Mutex::new).collect();
        pool.run(threads, &|index| {
            let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
            let w = &w[index * share * d_in..][..share * d_in];
            // SAFETY: `out` has `share` rows of B values, `w` `share` rows and `x` B rows of D values.
            unsafe {
                gemm::gemm(
                    share,
                    batch,
                    d_in,
                    part.as_mut_ptr(),
                    1,
                    batch as isize,
                    false,
                    w.as_ptr(),
                    1,
                    d_in as isize,
                    x.as_ptr(),
                    d_in as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        });
    });
    2.0 * (d_in * d_sae * batch) as f64 / secs
}

/// Bytes per second read and written by a pass over three arrays that changes all of them.
pub(crate) fn bandwidth(threads: usize) -> f64 {
    const LEN: usize = 16 << 20;
    let pool = Pool::new(threads);
    let mut arrays = [vec![1.0_f32; LEN], vec![1.0_f32; LEN], vec![1.0_f32; LEN]];
    let secs = fastest_of(5, || {
        let [a, b, c] = &mut arrays;
        let parts: Vec<_> = a
            .chunks_mut(1 << 16)
            .zip(b.chunks_mut(1 << 16))
            .zip(c.chunks_mut(1 << 16))
            .map(|((a, b), c)| Mutex::new((a, b, c)))
            .collect();
        pool.run(parts.len(), &|index| {
            let mut part = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
            let (a, b, c) = &mut *part;
            for ((a, b), c) in a.iter_mut().zip(b.iter_mut()).zip(c.iter_mut()) {
                *b = 0.9 * *b + 0.1 * *a;
                *c = 0.9 * *c + 0.1 * *a;
                *a -= 1e-3 * *b * *c;
            }
        });
    });
    (24 * LEN) as f64 / secs
}

fn fastest_of(n: usize, mut run: impl FnMut()) -> f64 {
    run();
    (0..n)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}
