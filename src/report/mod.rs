//! The report of a run: Markdown from a template, and figures as SVG. Strings out of plain data: this part
//! reads no file, no clock and writes nothing.
//!
//! [`report`] is the whole of it. What a template may use is described at the top of `templates/report.md`.

mod axes;
mod choose;
mod context;
mod failures;
mod figures;
mod plot;
mod ranking;
mod render;
mod sections;
mod text;
mod truth;

#[cfg(test)]
mod snapshots;

pub use render::{Report, ReportError, report};
