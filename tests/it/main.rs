//! Integration tests: one binary, one module a subject.

mod sae_format;
mod store;
mod train_golden;
mod train_loop;
