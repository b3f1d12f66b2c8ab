//! Integration tests: one binary, one module a subject.

mod model_gguf;
mod model_golden;
