//! Fused CPU kernels for SAE training on plain slices: slices in, slices out; no IO, no clock, no global state.
//!
//! Axes: B tokens in a batch, D activation width, F latents. Every array is row-major; both weight matrices
//! are (F, D), one row per latent. Read [`reference`] first: it is the specification, and the kernels equal
//! it to rounding (3e-6 of an array's largest value in the tests; measured below 1e-6).
//!
//! A step gathers the active latents from the encoder product ([`standard_step`] all positive ones,
//! [`topk_step`] and its kin the largest, [`jumprelu_step`] those above or near their threshold,
//! [`matching_pursuit_step`] one after the other), decodes, and makes the gradients latent by latent; [`adam`] clips
//! and updates. What is mostly zero is never stored or multiplied, nor, where bytes can tell beforehand, computed; what
//! is dense goes through whole products.
//! Sums are taken in a fixed order: no result depends on the number of threads, and AVX-512 and AVX2 give
//! the same bits.

// What is computed.
mod params;
pub mod reference;

mod adam;
mod aim;
mod aux_weight;
mod batch_topk;
mod gated;
mod infer;
mod jumprelu;
mod matching_pursuit;
mod matryoshka;
mod standard;
mod topk;
mod unit_rows;

// The parts of a step.
mod gather;
mod select;

#[cfg(target_arch = "x86_64")]
mod balance;
#[cfg(target_arch = "x86_64")]
mod bytes;
#[cfg(target_arch = "x86_64")]
mod chains;
mod pursuit;
mod pursuit_block;
mod pursuit_grads;
#[cfg(target_arch = "x86_64")]
mod row_bytes;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_row_bytes.rs"]
mod row_bytes;
mod row_panels;
#[cfg(target_arch = "x86_64")]
mod screen;
#[cfg(not(target_arch = "x86_64"))]
#[path = "unscreened.rs"]
mod screen;

mod bias_gradient;
mod decode;
mod jumps;
mod weight_tile;
mod weights;

mod dense;
mod lists;
mod parts;
mod workspace;

// What the parts are made of.
mod product;
mod rows;

mod isa;
mod memory;
pub mod phase;
mod pool;
mod simd;

#[cfg(all(test, target_arch = "x86_64"))]
mod screen_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use adam::{AdamStep, adam, clip_and_adam};
pub(crate) use aux_weight::NO_VARIANCE;
pub use batch_topk::{BatchTopKStep, batch_topk_step};
pub use gated::{GatedStep, gated_step};
pub use infer::{Activation, SparseActs, decode, encode};
pub use isa::Isa;
pub use jumprelu::{JumpReluStep, SparsityMode, jumprelu_step};
pub use matching_pursuit::{MatchingPursuitStep, Pursuit, PursuitSummary, matching_pursuit_step};
pub use matryoshka::matryoshka_step;
pub use params::{Params, Shape};
pub use pool::Pool;
pub use standard::{StandardStep, standard_step};
pub use topk::{TopKStep, abs_topk_step, topk_step};
pub use unit_rows::{remove_parallel, set_unit_rows};
pub use workspace::{StepLosses, Workspace};
