//! The held-out part of a store: what evaluation compares every SAE with.

use super::{
    HarvestError,
    build::{HarvestPhase, Watch},
    forward::{Forward, append},
};
use crate::{
    model::{HookState, per_token_kl, per_token_loss},
    store::EvalPart,
};

/// Logits in one pass: of large vocabularies only few sequences fit.
const LOGITS_PER_FORWARD: usize = 1 << 26;

/// Runs the held-out sequences as they are and with zeros at the hook, for a transcoder the output hook.
pub(crate) fn held_out_part(
    forward: &Forward<'_>,
    tokens: Vec<u32>,
    special_ids: Vec<u32>,
    watch: &mut Watch<'_>,
) -> Result<EvalPart, HarvestError> {
    let context_size = forward.context_size;
    let hook = forward.hooks.replaced();
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
        let (rows, state) = forward.to_hook(&input)?;
        append(&rows, &mut part.acts)?;
        if part.carry.is_empty() {
            let widths = state.carry.iter().map(|tensor| tensor.dims3().map(|(_, _, width)| width));
            part.carry =
                widths.map(|width| width.map(|width| (width, Vec::new()))).collect::<Result<_, _>>()?;
        }
        for (tensor, (_, values)) in state.carry.iter().zip(&mut part.carry) {
            append(tensor, values)?;
        }
        let clean = forward.model.run_from_hook(&state, &hook)?;
        let ablated_state = HookState { acts: state.acts.zeros_like()?, carry: state.carry };
        let ablated = forward.model.run_from_hook(&ablated_state, &hook)?;
        append(&per_token_loss(&clean, &input)?, &mut part.loss_clean)?;
        append(&per_token_loss(&ablated, &input)?, &mut part.loss_ablated)?;
        append(&per_token_kl(&clean, &ablated)?, &mut part.kl_ablated)?;
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
