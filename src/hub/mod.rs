//! hub.
