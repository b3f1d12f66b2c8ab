//! Causal attention with grouped heads, rotary positions and windows.
//!
//! Queries, keys and values come from one product with their stacked weights. A task is one head of one sequence:
//! it turns the keys, then takes the queries in strips of rows, so that the scores of a strip stay in the cache
//! and the part above the diagonal is never computed. Compared with whole (P, P) score matrices on candle's
//! operations this saves the copies into head order, half of both products, and the mask.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use candle_nn::{Linear, Module as _};
use gemm::{Parallelism, gemm};

use super::mlp::contiguous;
use super::modules::{BlockModule, Module, Parameters, used};
use super::parallel::for_each_task;
use super::rotary::Angles;
use super::{DecoderConfig, vector};

/// Query rows of a strip.
const STRIP: usize = 64;

/// Attention of one block, as far as it is used.
pub(crate) struct Attention {
    /// Weights (H h + 2 K h, D) of queries, keys and values, stacked.
    qkv: Option<Linear>,
    output: Option<Linear>,
    heads: Heads,
}

/// How the heads are laid out and what they see.
#[derive(Clone, Copy)]
struct Heads {
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
    scale: f32,
    /// Keys that a query sees, itself included.
    window: usize,
}

impl Attention {
    pub(crate) fn new(cfg: &DecoderConfig, layer: usize, parameters: &mut Parameters) -> Result<Self> {
        let part = |module| Module::Block(layer, module);
        let inputs = [BlockModule::Query, BlockModule::Key, BlockModule::Value].map(part);
        let weights: Vec<Tensor> = inputs.iter().filter_map(|module| parameters.weight(*module)).collect();
        let biases: Vec<Tensor> = inputs.iter().filter_map(|module| parameters.bias(*module)).collect();
        let stacked = |parts: &[Tensor]| {
            if parts.is_empty() { Ok(None) } else { Tensor::cat(parts, 0).map(Some) }
        };
        let bias = stacked(&biases)?;
        Ok(Self {
            qkv: stacked(&weights)?.map(|weight| Linear::new(weight, bias)),
            output: parameters.linear(part(BlockModule::AttentionOutput)),
            heads: Heads {
                n_heads: cfg.n_heads,
                n_kv_heads: cfg.n_kv_heads,
                d_head: cfg.d_head,
                scale: cfg.attention_scale as f32,
                window: cfg.windows[layer].unwrap_or(usize::MAX),
            },
        })
    }

    /// `attn.hook_z`: normalised residual (B, P, D) to (B, P, H h).
    pub(crate) fn mix(&self, normed: &Tensor, angles: Option<&Angles>) -> Result<Tensor> {
        used(self.qkv.as_ref()).forward(normed)?.apply_op1_no_bwd(&Mix { heads: self.heads, angles })
    }

    /// `hook_attn_out`: (B, P, H h) to (B, P, D).
    pub(crate) fn out(&self, z: &Tensor) -> Result<Tensor> {
        used(self.output.as_ref()).forward(z)
    }
}

/// From stacked queries, keys and values (B, P, H h + 2 K h) to z (B, P, H h).
struct Mix<'a> {
    heads: Heads,
    angles: Option<&'a Angles>,
}

impl CustomOp1 for Mix<'_> {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Heads { n_heads, n_kv_heads, d_head, .. } = self.heads;
        let (n_sequences, positions, width) = layout.shape().dims3()?;
        if width != (n_heads + 2 * n_kv_heads) * d_head {
            candle_core::bail!("attention over {n_heads} heads of {d_head} got rows of {width}");
        }
        let qkv = contiguous(storage, layout)?;
        let mut z = vec![0f32; n_sequences * positions * n_heads * d_head];
        let z_ptr = SharedOutput(z.as_mut_ptr());
        let cost = 2 * n_sequences * n_heads * positions * positions * d_head;
        for_each_task(n_sequences * n_heads, cost, |task| {
            let (sequence, head) = (task / n_heads, task % n_heads);
            let rows = &qkv[sequence * positions * width..(sequence + 1) * positions * width];
            let start = (sequence * positions * n_heads + head) * d_head;
            // SAFETY: `z` holds (sequence, position, head, h); this task alone writes at its sequence and head,
            // and `start` with rows `n_heads * d_head` apart stays within those.
            unsafe { self.one_head(rows, positions, head, z_ptr.get().add(start)) };
        });
        Ok((CpuStorage::F32(z), Shape::from((n_sequences, positions, n_heads * d_head))))
    }
}

impl Mix<'_> {
    /// One head of one sequence. `rows` is (P, H h + 2 K h).
    ///
    /// # Safety
    /// `z` must be valid for writes of h numbers at each of P rows `n_heads * d_head` apart.
    unsafe fn one_head(&self, rows: &[f32], positions: usize, head: usize, z: *mut f32) {
        let Heads { n_heads, n_kv_heads, d_head, scale, window } = self.heads;
        let width = (n_heads + 2 * n_kv_heads) * d_head;
        let kv_head = head / (n_heads / n_kv_heads);
        let (key_at, value_at) = ((n_heads + kv_head) * d_head, (n_heads + n_kv_heads + kv_head) * d_head);
        let z_stride = n_heads * d_head;

        let mut keys = vec![0f32; positions * d_head];
        for (position, out) in keys.chunks_exact_mut(d_head).enumerate() {
            let at = position * width + key_at;
            self.place(position, &rows[at..at + d_head], out);
        }
        let mut queries = vec![0f32; STRIP.min(positions) * d_head];
        let mut scores = vec![0f32; STRIP.min(positions) * positions];

        for strip_start in (0..positions).step_by(STRIP) {
            let strip_end = (strip_start + STRIP).min(positions);
            let strip = strip_end - strip_start;
            let first_key = (strip_start + 1).saturating_sub(window);
            let n_keys = strip_end - first_key;
            for (position, out) in (strip_start..strip_end).zip(queries.chunks_exact_mut(d_head)) {
                let at = position * width + head * d_head;
                self.place(position, &rows[at..at + d_head], out);
                out.iter_mut().for_each(|value| *value *= scale);
            }
            let keys = &keys[first_key * d_head..strip_end * d_head];
            let values = &rows[first_key * width + value_at..];
            assert!(values.len() >= (n_keys - 1) * width + d_head && scores.len() >= strip * n_keys);
            // SAFETY: scores (strip, n_keys), queries (strip, h) and keys (n_keys, h) are whole row-major
            // matrices within their buffers, by the slices and the assertion above.
            unsafe {
                product(
                    (strip, n_keys, d_head),
                    (scores.as_mut_ptr(), n_keys),
                    (queries.as_ptr(), d_head, 1),
                    (keys.as_ptr(), 1, d_head),
                );
            }
            let mut shares = [0f32; STRIP];
            for (row, share) in (0..strip).zip(&mut shares) {
                let query = strip_start + row;
                let seen = (query + 1).saturating_sub(window) - first_key..query + 1 - first_key;
                let row = &mut scores[row * n_keys..(row + 1) * n_keys];
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                *share = 1.0 / vector::exp_row(&mut row[seen]);
            }
            // SAFETY: scores as above; values (n_keys, h) with rows `width` apart end within `rows` by the
            // assertion; the caller vouches for z.
            unsafe {
                let z = z.add(strip_start * z_stride);
                product(
                    (strip, d_head, n_keys),
                    (z, z_stride),
                    (scores.as_ptr(), n_keys, 1),
                    (values.as_ptr(), width, 1),
                );
                for (row, share) in shares[..strip].iter().enumerate() {
                    let z = std::slice::from_raw_parts_mut(z.add(row * z_stride), d_head);
                    z.iter_mut().for_each(|value| *value *= share);
                }
            }
        }
    }

    /// Copies one head at one position, turned if the model turns.
    fn place(&self, position: usize, head: &[f32], out: &mut [f32]) {
        match self.angles {
            Some(angles) => angles.rotate(position, head, out),
            None => out.copy_from_slice(head),
        }
    }
}

/// `out = a b` on this thread: (m, n) = (m, k) (k, n). `out` comes with its row stride, `a` and `b` with row and
/// column strides.
///
/// # Safety
/// All three must lie within valid memory for the given shape and strides.
unsafe fn product(
    (m, n, k): (usize, usize, usize),
    out: (*mut f32, usize),
    a: (*const f32, usize, usize),
    b: (*const f32, usize, usize),
) {
    let (out, out_rows) = out;
    let (a, a_rows, a_cols) = a;
    let (b, b_rows, b_cols) = b;
    // SAFETY: the caller's promise.
    unsafe {
        gemm(
            m,
            n,
            k,
            out,
            1,
            out_rows as isize,
            false,
            a,
            a_cols as isize,
            a_rows as isize,
            b,
            b_cols as isize,
            b_rows as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// The output, which tasks write to at places that don't overlap.
struct SharedOutput(*mut f32);

impl SharedOutput {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

// SAFETY: only disjoint places are written through it, as the caller of `get` shows.
unsafe impl Sync for SharedOutput {}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};

    use super::*;
    use crate::model::Positions;
    use crate::model::families::tests::tiny_llama;

    /// The same on whole score matrices with candle's operations.
    fn plainly(qkv: &Tensor, heads: Heads, cfg: Option<&DecoderConfig>) -> Result<Tensor> {
        let Heads { n_heads, n_kv_heads, d_head, scale, window } = heads;
        let (b, p, _) = qkv.dims3()?;
        let part = |start: usize, n: usize| -> Result<Tensor> {
            let part = qkv.narrow(2, start * d_head, n * d_head)?.contiguous()?;
            let part = part.reshape((b, p, n, d_head))?.transpose(1, 2)?.contiguous()?;
            if n == n_heads {
                return Ok(part);
            }
            let part = part.unsqueeze(2)?.broadcast_as((b, n, n_heads / n, p, d_head))?.contiguous()?;
            part.reshape((b, n_heads, p, d_head))
        };
        let (mut q, mut k) = (part(0, n_heads)?, part(n_heads, n_kv_heads)?);
        if let Some(cfg) = cfg {
            let Positions::Rotary { theta, .. } = &cfg.positions else { panic!("rotary expected") };
            let angle = |p: usize, i: usize| p as f64 * theta.powf(-2.0 * i as f64 / d_head as f64);
            let table = |f: fn(f64) -> f64| {
                let values = (0..p).flat_map(|p| (0..d_head / 2).map(move |i| f(angle(p, i)) as f32));
                Tensor::from_vec(values.collect::<Vec<_>>(), (p, d_head / 2), &Device::Cpu)
            };
            q = candle_nn::rotary_emb::rope(&q, &table(f64::cos)?, &table(f64::sin)?)?;
            k = candle_nn::rotary_emb::rope(&k, &table(f64::cos)?, &table(f64::sin)?)?;
        }
        let mask = (0..p).flat_map(|q| {
            (0..p).map(move |k| if k <= q && q - k < window { 0.0 } else { f32::NEG_INFINITY })
        });
        let mask = Tensor::from_vec(mask.collect::<Vec<_>>(), (p, p), &Device::Cpu)?;
        let scores =
            (q.matmul(&k.transpose(D::Minus1, D::Minus2)?)? * f64::from(scale))?.broadcast_add(&mask)?;
        let z =
            candle_nn::ops::softmax_last_dim(&scores)?.matmul(&part(n_heads + n_kv_heads, n_kv_heads)?)?;
        z.transpose(1, 2)?.contiguous()?.reshape((b, p, n_heads * d_head))
    }

    #[test]
    fn strips_agree_with_whole_score_matrices() {
        let cfg = tiny_llama();
        for positions in [1, 2, 63, 64, 65, 150] {
            for window in [1, 3, 64, usize::MAX] {
                for rotary in [false, true] {
                    let heads = Heads { n_heads: 4, n_kv_heads: 2, d_head: 4, scale: 0.7, window };
                    let qkv = Tensor::randn(0f32, 2.0, (2, positions, 32), &Device::Cpu).unwrap();
                    let angles = if rotary { Angles::new(&cfg, positions) } else { None };
                    let op = Mix { heads, angles: angles.as_ref() };
                    let got = qkv.apply_op1_no_bwd(&op).unwrap();
                    let expected = plainly(&qkv, heads, rotary.then_some(&cfg)).unwrap();
                    let worst = (got - expected).unwrap().abs().unwrap().max_all().unwrap();
                    let worst = worst.to_scalar::<f32>().unwrap();
                    assert!(worst < 2e-5, "{positions} {window} {rotary}: {worst:e}");
                }
            }
        }
    }
}
