//! Integration tests: one binary, one module a subject.

mod model_golden;
mod store;
mod tidy;
