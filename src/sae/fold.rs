//! Folding a map of the activations, or the decoder's row norms, into the weights, so that the SAE takes
//! activations as the model makes them. Each fold leaves the SAE's function as it was.

use super::{
    dense::{self, Side},
    normalize::Whitening,
};
use crate::kernels::{Params, Pool};

/// Folds `z = s · x`: latents stay as they are, reconstructions come out unscaled. Where the encoder is the
/// decoder's transpose, latents come out unscaled, too, and the weights stay as they are.
pub fn fold_scale(params: &mut Params, s: f64) {
    if params.is_tied() {
        params.b_dec.iter_mut().for_each(|b| *b /= s as f32);
        return;
    }
    fold_scales(params, s, s);
}

/// As [`fold_scale`] for a transcoder, whose inputs were scaled by `s_in` and whose outputs by `s_out`.
pub fn fold_scales(params: &mut Params, s_in: f64, s_out: f64) {
    let (s_in, s_out) = (s_in as f32, s_out as f32);
    params.w_enc.iter_mut().for_each(|w| *w *= s_in);
    params.w_dec.iter_mut().chain(&mut params.b_dec).for_each(|w| *w /= s_out);
}

/// Folds a whitening. With `apply_b_dec_to_input` the encoder already subtracts the mean, as part of the
/// new decoder bias.
pub fn fold_whitening(pool: &Pool, params: &mut Params, whitening: &Whitening, apply_b_dec_to_input: bool) {
    let d = whitening.mean.len();
    map_rows(pool, &mut params.w_enc, &whitening.matrix, Side::Transposed, d);
    if !apply_b_dec_to_input {
        for (bias, row) in params.b_enc.iter_mut().zip(params.w_enc.chunks_exact(d)) {
            let shift: f64 = row.iter().zip(&whitening.mean).map(|(w, m)| f64::from(*w) * m).sum();
            *bias = (f64::from(*bias) - shift) as f32;
        }
        // Magnitudes read the same row, scaled.
        for ((bias, r_mag), row) in
            params.b_mag.iter_mut().zip(&params.r_mag).zip(params.w_enc.chunks_exact(d))
        {
            let shift: f64 = row.iter().zip(&whitening.mean).map(|(w, m)| f64::from(*w) * m).sum();
            *bias = (f64::from(*bias) - shift * f64::from(*r_mag).exp()) as f32;
        }
    }
    map_rows(pool, &mut params.w_dec, &whitening.inverse, Side::Plain, d);
    let mut bias: Vec<f64> = vec![0.0; d];
    let old: Vec<f64> = params.b_dec.iter().map(|&b| f64::from(b)).collect();
    dense::rows_times(pool, &old, &whitening.inverse, Side::Plain, d, &mut bias);
    for ((new, bias), mean) in params.b_dec.iter_mut().zip(bias).zip(&whitening.mean) {
        *new = (bias + mean) as f32;
    }
}

/// Folds the norms of decoder rows into the encoder: rows get norm 1, latents are measured in units of
/// the old norms.
pub fn fold_decoder_norms(params: &mut Params, d: usize) {
    for ((enc, dec), bias) in
        params.w_enc.chunks_exact_mut(d).zip(params.w_dec.chunks_exact_mut(d)).zip(&mut params.b_enc)
    {
        let norm = dec.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt().max(1e-8) as f32;
        enc.iter_mut().for_each(|w| *w *= norm);
        dec.iter_mut().for_each(|w| *w /= norm);
        *bias *= norm;
    }
}

/// Every row of f32 `rows` (R, D) times `matrix`, computed in f64.
fn map_rows(pool: &Pool, rows: &mut [f32], matrix: &[f64], side: Side, d: usize) {
    // Blocks bound the f64 copies; their size is fixed, and so is the result.
    for block in rows.chunks_mut(1024 * d) {
        let wide: Vec<f64> = block.iter().map(|&w| f64::from(w)).collect();
        let mut out = vec![0.0; wide.len()];
        dense::rows_times(pool, &wide, matrix, side, d, &mut out);
        block.iter_mut().zip(out).for_each(|(w, x)| *w = x as f32);
    }
}
