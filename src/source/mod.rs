//! Rows that no language model has to be run for: toy data with known features ([`Toy`]), and activations
//! that somebody else computed and wrote to files ([`RowFiles`]).
//!
//! Both give any training row by its number, so that a store can be written shard by shard in its own order
//! and goes on after an interruption. Start with [`RowSource`].

mod error;
mod files;
mod npy;
mod toy;

pub use error::{Difference, SourceError};
pub use files::{RowFiles, resolve};
pub use toy::{Toy, Truth};

/// Rows by number.
pub trait RowSource {
    /// Numbers in a row.
    fn width(&self) -> usize;

    /// Training rows.
    fn train_rows(&self) -> usize;

    /// Held-out rows.
    fn eval_rows(&self) -> usize;

    /// Appends the training rows of these numbers, in this order.
    ///
    /// # Errors
    /// When a row is not made of finite numbers.
    fn append_train(&self, rows: &[usize], out: &mut Vec<f32>) -> Result<(), SourceError>;

    /// Appends all held-out rows.
    ///
    /// # Errors
    /// When a row is not made of finite numbers.
    fn append_eval(&self, out: &mut Vec<f32>) -> Result<(), SourceError>;
}
