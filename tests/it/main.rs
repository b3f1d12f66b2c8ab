//! Integration tests: one binary, one module a subject.

mod data;
mod hub;
mod model_golden;
mod store;
