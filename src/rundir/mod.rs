//! rundir.
