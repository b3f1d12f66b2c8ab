//! Integration tests: one binary, one module a subject.
mod data;
mod hub;
mod store;

mod model_golden;
