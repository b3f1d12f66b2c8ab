//! Integration tests: one binary, one module a subject.

mod sae_format;
mod train_golden;
