//! The phases of a training step, as tracing spans at their heads.
//!
//! Whoever wants a profile subscribes and reads its own clock at the edges (`tests/bench/phases.rs` does); kernels read
//! none. Without a subscriber a span costs one load, and a step has about ten.

use tracing::span::EnteredSpan;

/// The target of all spans of phases.
pub const TARGET: &str = "saesweep::phase";

/// Enters a phase until the guard is dropped. On the thread that runs the step only.
macro_rules! enter {
    ($name:literal) => {
        tracing::trace_span!(target: $crate::kernels::phase::TARGET, $name).entered()
    };
}

/// The batch is packed for the encoder, in floats and where it is screened in bytes.
pub(super) fn pack() -> EnteredSpan {
    enter!("pack")
}

/// Encoder products, from which lists of the latents that may count are kept.
pub(super) fn encode() -> EnteredSpan {
    enter!("encode")
}

/// Of the lists, those that count are chosen.
pub(super) fn select() -> EnteredSpan {
    enter!("select")
}

/// Norms of decoder rows.
pub(super) fn norms() -> EnteredSpan {
    enter!("norms")
}

/// Reconstructions and their errors.
pub(super) fn decode() -> EnteredSpan {
    enter!("decode")
}

/// Gradients of all weights.
pub(super) fn gradients() -> EnteredSpan {
    enter!("gradients")
}

/// Clip and Adam.
pub(super) fn adam() -> EnteredSpan {
    enter!("adam")
}

/// Latents are pursued one after another.
pub(super) fn pursue() -> EnteredSpan {
    enter!("pursue")
}
