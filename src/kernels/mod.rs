//! Fused CPU kernels for SAE training on plain slices: slices in, slices out; no IO, no clock, no global state.
//!
//! Axes: B tokens in a batch, D activation width, F latents. Every array is row-major; both weight matrices
//! are (F, D), one row per latent. Read [`reference`] first: it is the specification, and the kernels equal
//! it to rounding. Sums are taken in a fixed order, so no result depends on the number of threads.

mod adam;
mod aim;
mod decode;
mod gather;
mod infer;
mod isa;
mod lists;
mod memory;
mod params;
mod pool;
mod product;
pub mod reference;
mod rows;
mod select;
mod simd;
mod standard;
#[cfg(test)]
mod testing;
mod topk;
mod weights;
mod workspace;

pub use adam::{AdamStep, adam, clip_and_adam};
pub use infer::{Activation, SparseActs, decode, encode};
pub use isa::Isa;
pub use params::{Params, Shape};
pub use pool::Pool;
pub use standard::{StandardStep, standard_step};
pub use topk::{TopKStep, topk_step};
pub use workspace::{StepLosses, Workspace};
