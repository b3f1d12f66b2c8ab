//! saesweep: hyperparameter sweeps for sparse autoencoders. See `ARCHITECTURE.md` beside this file.

// rank 0: plain data and pure numbers
pub mod failpoint;
pub mod hub;
pub mod kernels;
pub mod metric;
pub mod slot;
pub mod trial;
// rank 1
pub mod data;
pub mod event;
pub mod model;
pub mod sae;
pub mod source;
pub mod spec;
pub mod store;
// rank 2
pub mod eval;
pub mod harvest;
pub mod rundir;
pub mod train;
// rank 3
pub mod sched;
pub mod table;
// rank 4
pub mod report;
// rank 5
pub mod cli;
