//! Model + data → activation store.
//!
//! [`ensure_store`] is the whole of it: it works out which store a trial needs ([`store_identity`]), returns at
//! once when that store is there, and otherwise runs the model over the packed data to the hook and writes what
//! comes out. [`ensure_row_store`] does the same for toy data and files of activations, which need no model. Memory stays within the token sequences, one shard and one batch. Nothing here knows the formats
//! of models, data or stores. Read [`ensure_store`] first.

mod build;
mod error;
mod forward;
mod held_out;
mod identity;
mod rows;
mod tokens;

pub use build::{HarvestPhase, HarvestProgress, ensure_store};
pub use error::HarvestError;
pub use identity::{ContentHashes, store_identity, store_identity_cached};
pub use rows::ensure_row_store;
