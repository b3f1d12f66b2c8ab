//! Drawing: axes, colours and a canvas over plotters' SVG backend. Knows nothing of trials.
//!
//! Figures have no background of their own and use mid-tones only, so that one file reads well on light
//! and on dark pages: every colour has a contrast of at least 2.8 against both white and `#0d1117`, text at
//! least 4. Read [`Canvas`] first.

mod axis;
mod canvas;
mod colour;
mod legend;
mod panel;

pub(super) use axis::{Axis, Scale};
pub(super) use canvas::{Anchor, Canvas, PlotError, Rect, Stroke, text_width};
pub(super) use colour::{Colour, GREY, INK, RED, categorical, sequential};
pub(super) use legend::{Entry, draw_legend};
pub(super) use panel::{Marker, Panel, draw_cross};
