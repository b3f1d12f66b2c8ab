//! Names on the Hugging Face Hub → files on this machine.
//!
//! [`fetch_model`] and [`fetch_dataset`] bring what a sweep needs into the cache that Python's
//! `huggingface_hub` uses too, in its snapshot layout, and return local paths. Everything about the outside
//! world (cache folder, token, endpoint, offline or not) arrives in [`HubOptions`]; only
//! [`HubOptions::from_env`] reads the environment. Nothing here draws progress bars: that is [`Progress`],
//! implemented by the caller. Read [`fetch`] first.
//!
//! Names, urls, repository information and cache folders come from `hf-hub`. The transfer itself is ours
//! (`transfer.rs`), because `hf-hub` 0.5 sends the token to whatever host a file is redirected to,
//! appends to a half file even when the server starts again from byte 0, and never compares lengths.

mod cache;
mod error;
mod fetch;
mod name;
mod options;
mod remote;
mod selection;
mod transfer;

pub use error::{HubError, RepoKind};
pub use fetch::{Progress, fetch_dataset, fetch_model};
pub use name::HubName;
pub use options::{HubOptions, Token};
