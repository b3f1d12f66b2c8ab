//! A legend: a column of entries beside the panels.

use super::{Anchor, Canvas, Colour, INK, Marker, PlotError, Rect, Scale, Stroke, axis::Axis, sequential};

const SIZE: f64 = 11.5;
const LINE: f64 = 18.0;

/// One line of a legend, or its colour bar.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry {
    /// What the entries below stand for.
    Heading(String),
    /// A mark and its meaning.
    Mark(Marker, Colour, String),
    /// A line and its meaning.
    Line { colour: Colour, dashed: bool, text: String },
    /// A colour bar over an axis.
    Bar(Axis),
    /// A remark.
    Note(String),
    /// More about the entry above.
    Detail(String),
    /// Room.
    Gap,
}

/// Draws entries from the top of `rect` downwards.
pub(crate) fn draw_legend(canvas: &mut Canvas<'_>, rect: Rect, entries: &[Entry]) -> Result<(), PlotError> {
    let mut y = rect.top + LINE / 2.0;
    let (left, text_left) = (rect.left, rect.left + 24.0);
    for entry in entries {
        match entry {
            Entry::Heading(text) => canvas.bold_text(text, (left, y), Anchor::Start, SIZE, INK)?,
            Entry::Note(text) => canvas.text(text, (left, y), Anchor::Start, SIZE - 0.5, INK)?,
            Entry::Detail(text) => canvas.text(text, (text_left, y - 2.0), Anchor::Start, SIZE - 0.5, INK)?,
            Entry::Mark(marker, colour, text) => {
                marker.draw(canvas, (left + 9.0, y), 5.0, *colour)?;
                canvas.text(text, (text_left, y), Anchor::Start, SIZE, INK)?;
            }
            Entry::Line { colour, dashed, text } => {
                let points = [(left, y), (left + 18.0, y)];
                let stroke = Stroke { colour: *colour, width: 2.0 };
                if *dashed {
                    canvas.dashed(&points, stroke)?;
                } else {
                    canvas.line(&points, stroke)?;
                }
                canvas.text(text, (text_left, y), Anchor::Start, SIZE, INK)?;
            }
            Entry::Bar(axis) => {
                let bar = Rect { left: left + 2.0, top: y - 6.0, width: 14.0, height: 6.0 * LINE };
                draw_bar(canvas, bar, axis)?;
                y += bar.height - LINE / 2.0;
            }
            Entry::Gap => y -= LINE * 0.5,
        }
        y += LINE;
    }
    Ok(())
}

fn draw_bar(canvas: &mut Canvas<'_>, bar: Rect, axis: &Axis) -> Result<(), PlotError> {
    let parts = 48;
    for i in 0..parts {
        let place = |i: i32| bar.bottom() - bar.height * f64::from(i) / f64::from(parts);
        // Each part reaches to the top and the next one covers it, so that no seam shows.
        let (bottom, top) = (place(i), bar.top);
        let corners = [(bar.left, bottom), (bar.right(), bottom), (bar.right(), top), (bar.left, top)];
        canvas.polygon(&corners, sequential((f64::from(i) + 0.5) / f64::from(parts)))?;
    }
    let wanted = if axis.scale() == Scale::Log { 4 } else { 3 };
    for (value, label) in axis.ticks(wanted) {
        let y = bar.bottom() - axis.place(value) * bar.height;
        canvas.line(&[(bar.right(), y), (bar.right() + 4.0, y)], Stroke { colour: INK, width: 1.0 })?;
        canvas.text(&label, (bar.right() + 8.0, y), Anchor::Start, SIZE - 0.5, INK)?;
    }
    Ok(())
}
