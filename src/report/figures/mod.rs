//! The figures of a report, each a function from plain data to SVG text. `None` where there is nothing to
//! draw.

mod curves;
mod density;
mod effects;
mod frontier;
mod recovery;

pub(super) use curves::curves_figure;
pub(super) use density::{density_figure, density_trials};
pub(super) use effects::effects_figure;
pub(super) use frontier::frontier_figure;
pub(super) use recovery::{name as series_name, recovery_figure};

/// Width of every figure in pixels: what a Markdown page shows without scaling.
const WIDTH: u32 = 820;
