//! The held-out part of a store: what evaluation compares every SAE with.

use super::{
    HarvestError,
    build::{HarvestPhase, Watch},
    forward::{Forward, append},
};
use crate::{
    model::{HookState, per_token_loss},
    store::EvalPart,
};
use candle_core::Tensor;

/// Logits in one pass: of large vocabularies only few sequences fit.
const LOGITS_PER_FORWARD: usize = 1 << 26;

/// Runs the held-out sequences as they are and with zeros at the hook.
pub(crate) fn held_out_part(
    forward: &Forward<'_>,
    tokens: Vec<u32>,
    special_ids: Vec<u32>,
    watch: &mut Watch<'_>,
) -> Result<EvalPart, HarvestError> {
    let context_size = forward.context_size;
    let logits_per_sequence = context_size * forward.model.config().vocab_size;
    let batch = (LOGITS_PER_FORWARD / logits_per_sequence).clamp(1, forward.batch());
    let mut part = EvalPart {
        context_size,
        acts: Vec::with_capacity(tokens.len() * forward.width),
        carry: Vec::new(),
        loss_clean: Vec::with_capacity(tokens.len()),
        loss_ablated: Vec::with_capacity(tokens.len()),
        kl_ablated: Vec::with_capacity(tokens.len()),
        special_ids,
        tokens: Vec::new(),
    };
    let mut done = 0;
    for sequences in tokens.chunks(batch * context_size) {
        watch.tell(HarvestPhase::Evaluating, done, tokens.len() as u64)?;
        let input = forward.tokens(sequences)?;
        let state = forward.to_hook(&input)?;
        append(&state.acts, &mut part.acts)?;
        if part.carry.is_empty() {
            let widths = state.carry.iter().map(|tensor| tensor.dims3().map(|(_, _, width)| width));
            part.carry =
                widths.map(|width| width.map(|width| (width, Vec::new()))).collect::<Result<_, _>>()?;
        }
        for (tensor, (_, values)) in state.carry.iter().zip(&mut part.carry) {
            append(tensor, values)?;
        }
        let clean = forward.model.run_from_hook(&state, &forward.hook)?;
        let ablated_state = HookState { acts: state.acts.zeros_like()?, carry: state.carry };
        let ablated = forward.model.run_from_hook(&ablated_state, &forward.hook)?;
        append(&per_token_loss(&clean, &input)?, &mut part.loss_clean)?;
        append(&per_token_loss(&ablated, &input)?, &mut part.loss_ablated)?;
        part.kl_ablated.extend(kl_between(&clean, &ablated)?);
        check_finite(&part, done as usize / context_size)?;
        done += sequences.len() as u64;
    }
    part.tokens = tokens;
    Ok(part)
}

/// Refuses a model that computes NaN or infinities: every figure made from them would be one too.
fn check_finite(part: &EvalPart, first_sequence: usize) -> Result<(), HarvestError> {
    let per_sequence = part.context_size - 1;
    for (what, loss) in [("as it is", &part.loss_clean), ("with zeros at the hook", &part.loss_ablated)] {
        let first = first_sequence * per_sequence;
        if let Some(at) = loss[first..].iter().position(|loss| !loss.is_finite()) {
            let (loss, at) = (loss[first + at], first + at);
            let (sequence, position) = (at / per_sequence, at % per_sequence);
            return Err(HarvestError::NotFinite { what, loss, sequence, position });
        }
    }
    Ok(())
}

/// KL(clean || other) of each position from logits (B, P, V).
fn kl_between(clean: &Tensor, other: &Tensor) -> Result<Vec<f32>, HarvestError> {
    let (_, _, vocab_size) = clean.dims3()?;
    let clean = clean.flatten_all()?.to_vec1::<f32>()?;
    let other = other.flatten_all()?.to_vec1::<f32>()?;
    let positions = clean.len() / vocab_size;
    let mut kl = vec![0.0; positions];
    let each = positions.div_ceil(candle_core::utils::get_num_threads().max(1)).max(1);
    std::thread::scope(|scope| {
        let inputs = clean.chunks(each * vocab_size).zip(other.chunks(each * vocab_size));
        for (kl, (clean, other)) in kl.chunks_mut(each).zip(inputs) {
            scope.spawn(move || {
                let rows = clean.chunks_exact(vocab_size).zip(other.chunks_exact(vocab_size));
                for (kl, (clean, other)) in kl.iter_mut().zip(rows) {
                    *kl = kl_divergence(clean, other) as f32;
                }
            });
        }
    });
    Ok(kl)
}

/// KL(p || q) in nats, for p and q given by logits (V,) each.
///
/// With e_i = exp(p_i - max p): sum e_i (p_i - q_i) / sum e_i - logsumexp(p) + logsumexp(q). Exponentials are
/// taken in f32, everything is summed in f64.
pub fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    assert_eq!(p.len(), q.len(), "invariant: both are over one vocabulary");
    let max = |logits: &[f32]| logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (max_p, max_q) = (max(p), max(q));
    let (mut sum_p, mut sum_q, mut weighted) = (0_f64, 0_f64, 0_f64);
    for (&p, &q) in p.iter().zip(q) {
        let e = f64::from((p - max_p).exp());
        sum_p += e;
        sum_q += f64::from((q - max_q).exp());
        // A token that p rules out adds nothing, however impossible q finds it.
        if e > 0.0 {
            weighted += e * (f64::from(p - max_p) - f64::from(q - max_q));
        }
    }
    let divergence = weighted / sum_p - sum_p.ln() + sum_q.ln();
    // Rounding may leave a hair below zero, which a divergence never is. NaN stays NaN.
    if divergence < 0.0 { 0.0 } else { divergence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(p: &[f32], q: &[f32]) -> f64 {
        let log_probabilities = |logits: &[f32]| {
            let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            logits.iter().map(|x| f64::from(*x) - sum.ln()).collect::<Vec<_>>()
        };
        let (p, q) = (log_probabilities(p), log_probabilities(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn divergence_is_what_its_formula_says(
            pairs in proptest::collection::vec((-20_f32..20.0, -20_f32..20.0), 1..40),
            shift in -1000_f32..1000.0,
        ) {
            let (p, q): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let expected = naive(&p, &q);
            prop_assert!((kl_divergence(&p, &q) - expected).abs() < 1e-5 * (1.0 + expected));
            // Logits mean the same when all of them are moved, and then must not overflow.
            let moved: Vec<f32> = q.iter().map(|q| q + shift).collect();
            prop_assert!((kl_divergence(&p, &moved) - expected).abs() < 1e-2 * (1.0 + expected));
        }
    }

    #[test]
    fn divergence_from_itself_is_zero() {
        assert!(kl_divergence(&[1.0, 2.0, -3.0], &[1.0, 2.0, -3.0]) < 1e-12);
        assert!(kl_divergence(&[0.0, f32::NEG_INFINITY], &[0.0, 0.0]) - std::f64::consts::LN_2 < 1e-7);
    }

    #[test]
    fn nan_stays_nan() {
        assert!(kl_divergence(&[f32::NAN, 0.0], &[0.0, 0.0]).is_nan());
        assert!(kl_divergence(&[0.0, 0.0], &[0.0, f32::NAN]).is_nan());
    }
}
