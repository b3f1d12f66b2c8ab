//! harvest.
