//! Sweep files: TOML in, trials out. Pure: no file is opened, no clock read; text in, [`Plan`] out.
//!
//! `source` reads TOML with line numbers, `layers` merges defaults, file, environment and `--set`,
//! `sections` checks fixed settings against the table in `keys`, `variation` reads what varies, `expand`
//! makes the combinations, `check` and `fits` judge each, `identity` names it. [`load`] in `plan` is the way through.
//! Every problem on the way is collected and told at the end, all together ([`SpecErrors`]).
//!
//! Settings are documented in `defaults.toml`, embedded as [`DEFAULTS_TOML`]; the canonical form behind a
//! trial's id is described in `identity`.

mod axes;
mod check;
mod config;
mod error;
mod expand;
mod expressions;
mod fits;
mod formulas;
mod identity;
mod judge;
mod keys;
mod layers;
mod plan;
mod resolved;
mod sections;
mod setting;
mod source;
mod strategy;
mod suggest;
mod transcoder;
mod variation;

#[cfg(test)]
mod tests;

pub use axes::Axis;
pub use config::{Devices, LocalName, Objective, ReportSection, Strategy, SweepSection, SweepSpec};
pub use error::{Fault, Place, Problem, SpecErrors};
pub use fits::contradictions_in;
pub use identity::{canonical, flat, trial_id};
pub use plan::{Plan, PlannedTrial, load};
pub use resolved::{resolved_toml, trial_toml_snippet};
pub use source::SpecSource;

/// Every setting with its default and its meaning, as a commented TOML page.
pub const DEFAULTS_TOML: &str = include_str!("defaults.toml");
