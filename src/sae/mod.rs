//! sae.
