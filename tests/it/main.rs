//! Integration tests: one binary, one module a subject.
mod spec_errors;
mod sweep_files;
