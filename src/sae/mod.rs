//! The sparse autoencoder as a thing of its own: how it starts, how activations are scaled for it, how it
//! reconstructs, and how it lies on disk in SAELens' format.
//!
//! Start with [`Sae`]. Nothing here knows of training steps, stores or trials' folders. Both weight
//! matrices are held (F, D), one row per latent; only the files on disk have SAELens' (D, F) encoder.

mod config_json;
mod config_read;
mod dense;
mod dictionary;
mod eigen;
mod export;
mod fold;
pub(crate) mod folder;
mod format;
mod inference;
mod init;
mod normalize;
mod runner_json;
mod start;

pub use config_read::{ConfigProblem, Origin};
pub use dictionary::{DICTIONARY_CONFIG_FILE, DICTIONARY_FILE};
pub use export::{ExportError, ExportFormat, ExportInfo, RUNNER_FILE, export};
pub use fold::{fold_decoder_norms, fold_scale, fold_whitening};
pub use format::{
    CONFIG_FILE, SPARSITY_FILE, SaeError, SaveInfo, WEIGHTS_FILE, load, load_sparsity, load_with_origin,
    save, weights_blake3,
};
pub use inference::Sae;
pub use init::init;
pub use normalize::{Normalizer, RowScales, Whitening};
pub use start::{Start, StartProblem, check_start, start};
