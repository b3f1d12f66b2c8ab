//! A plotting area with two axes: grid, ticks, titles, lines cut at its borders, markers.

use super::{Anchor, Axis, Canvas, Colour, INK, PlotError, Rect, Stroke, canvas::text_width};

/// Size of tick labels in pixels.
const TICK_SIZE: f64 = 11.5;
/// Size of axis titles in pixels.
const TITLE_SIZE: f64 = 12.5;

/// A plotting area.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panel {
    pub(crate) rect: Rect,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
}

/// The shape of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    Disc,
    Square,
    Triangle,
    Diamond,
    TriangleDown,
}

impl Marker {
    /// The shape of the `i`-th name.
    pub(crate) fn nth(i: usize) -> Self {
        [Self::Disc, Self::Square, Self::Triangle, Self::Diamond, Self::TriangleDown][i % 5]
    }

    /// Draws it around `at`; all shapes have about the area of a disc of that radius.
    pub(crate) fn draw(
        self,
        canvas: &mut Canvas<'_>,
        at: (f64, f64),
        r: f64,
        colour: Colour,
    ) -> Result<(), PlotError> {
        match self.corners(at, r) {
            None => canvas.disc(at, r, colour),
            Some(corners) => canvas.polygon(&corners, colour),
        }
    }

    /// Draws its outline.
    pub(crate) fn draw_hollow(
        self,
        canvas: &mut Canvas<'_>,
        at: (f64, f64),
        r: f64,
        colour: Colour,
    ) -> Result<(), PlotError> {
        let stroke = Stroke { colour, width: 1.6 };
        match self.corners(at, r) {
            None => canvas.ring(at, r, stroke),
            Some(mut corners) => {
                corners.push(corners[0]);
                canvas.line(&corners, stroke)
            }
        }
    }

    /// The corners around a point; a disc has none.
    fn corners(self, (x, y): (f64, f64), r: f64) -> Option<Vec<(f64, f64)>> {
        let around = |points: &[(f64, f64)]| -> Option<Vec<(f64, f64)>> {
            Some(points.iter().map(|&(dx, dy)| (x + dx * r, y + dy * r)).collect())
        };
        match self {
            Self::Disc => None,
            Self::Square => around(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            Self::Triangle => around(&[(0.0, -1.25), (1.2, 0.85), (-1.2, 0.85)]),
            Self::TriangleDown => around(&[(0.0, 1.25), (1.2, -0.85), (-1.2, -0.85)]),
            Self::Diamond => around(&[(0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)]),
        }
    }
}

/// Draws a small ×.
pub(crate) fn draw_cross(
    canvas: &mut Canvas<'_>,
    (x, y): (f64, f64),
    colour: Colour,
) -> Result<(), PlotError> {
    let (r, stroke) = (3.2, Stroke { colour, width: 2.0 });
    canvas.line(&[(x - r, y - r), (x + r, y + r)], stroke)?;
    canvas.line(&[(x - r, y + r), (x + r, y - r)], stroke)
}

impl Panel {
    /// The page position of a point.
    pub(crate) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let rect = self.rect;
        (rect.left + self.x.place(x) * rect.width, rect.bottom() - self.y.place(y) * rect.height)
    }

    /// Grid, border lines, ticks and both titles; the y title stands above the panel, so that it can be read
    /// without turning the head.
    pub(crate) fn draw_frame(
        &self,
        canvas: &mut Canvas<'_>,
        x_title: &str,
        y_title: &str,
    ) -> Result<(), PlotError> {
        let x_ticks = self.x.ticks((self.rect.width / 60.0) as usize);
        self.draw_frame_with(canvas, x_title, y_title, &x_ticks)
    }

    /// The same with given ticks on the x axis.
    pub(crate) fn draw_frame_with(
        &self,
        canvas: &mut Canvas<'_>,
        x_title: &str,
        y_title: &str,
        x_ticks: &[(f64, String)],
    ) -> Result<(), PlotError> {
        let rect = self.rect;
        let grid = Stroke { colour: INK.alpha(0.28), width: 0.6 };
        let border = Stroke { colour: INK, width: 1.0 };
        for (value, label) in self.y.ticks((rect.height / 45.0) as usize) {
            let y = rect.bottom() - self.y.place(value) * rect.height;
            canvas.line(&[(rect.left, y), (rect.right(), y)], grid)?;
            canvas.text(&label, (rect.left - 7.0, y), Anchor::End, TICK_SIZE, INK)?;
        }
        let mut free_from = f64::NEG_INFINITY;
        for (value, label) in x_ticks {
            let x = rect.left + self.x.place(*value) * rect.width;
            canvas.line(&[(x, rect.top), (x, rect.bottom())], grid)?;
            let half = text_width(label, TICK_SIZE) / 2.0;
            if x - half >= free_from {
                canvas.text(label, (x, rect.bottom() + 12.0), Anchor::Middle, TICK_SIZE, INK)?;
                free_from = x + half + 6.0;
            }
        }
        canvas.line(
            &[(rect.left, rect.top), (rect.left, rect.bottom()), (rect.right(), rect.bottom())],
            border,
        )?;
        let middle = rect.left + rect.width / 2.0;
        canvas.text(x_title, (middle, rect.bottom() + 31.0), Anchor::Middle, TITLE_SIZE, INK)?;
        canvas.upward_text(y_title, (rect.left - 50.0, rect.top + rect.height / 2.0), TITLE_SIZE, INK)
    }

    /// A line through data points, cut at the panel's lower and upper border and interrupted where a value is
    /// not finite or cannot stand on a logarithmic axis.
    pub(crate) fn curve(
        &self,
        canvas: &mut Canvas<'_>,
        points: &[(f64, f64)],
        stroke: Stroke,
        dashed: bool,
    ) -> Result<(), PlotError> {
        for piece in self.visible_pieces(points) {
            if dashed {
                canvas.dashed(&piece, stroke)?;
            } else {
                canvas.line(&piece, stroke)?;
            }
        }
        Ok(())
    }

    /// The parts of a line inside the panel, in page pixels.
    fn visible_pieces(&self, points: &[(f64, f64)]) -> Vec<Vec<(f64, f64)>> {
        let (top, bottom) = (self.rect.top, self.rect.bottom());
        let mut pieces: Vec<Vec<(f64, f64)>> = Vec::new();
        let mut open = false;
        let pixels: Vec<(f64, f64)> = points.iter().map(|&(x, y)| self.at(x, y)).collect();
        for pair in pixels.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            if !(x0.is_finite() && x1.is_finite() && y0.is_finite() && y1.is_finite()) {
                open = false;
                continue;
            }
            // The share of the segment inside the panel.
            let (mut from, mut to) = (0.0f64, 1.0f64);
            if y0 == y1 {
                if !(top..=bottom).contains(&y0) {
                    open = false;
                    continue;
                }
            } else {
                let (a, b) = ((top - y0) / (y1 - y0), (bottom - y0) / (y1 - y0));
                (from, to) = (from.max(a.min(b)), to.min(a.max(b)));
            }
            if from > to {
                open = false;
                continue;
            }
            let along = |t: f64| (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t);
            match pieces.last_mut() {
                Some(piece) if open && from == 0.0 => piece.push(along(to)),
                _ => pieces.push(vec![along(from), along(to)]),
            }
            open = to == 1.0;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel() -> Panel {
        let rect = Rect { left: 0.0, top: 0.0, width: 10.0, height: 10.0 };
        Panel { rect, x: Axis::between(0.0, 10.0), y: Axis::between(0.0, 10.0) }
    }

    #[test]
    fn lines_are_cut_at_the_border() {
        let pieces = panel().visible_pieces(&[(0.0, 5.0), (2.0, 15.0), (4.0, 5.0), (5.0, 5.0)]);
        assert_eq!(pieces, [vec![(0.0, 5.0), (1.0, 0.0)], vec![(3.0, 0.0), (4.0, 5.0), (5.0, 5.0)]]);
    }

    #[test]
    fn lines_are_interrupted_by_what_is_no_number() {
        let pieces =
            panel().visible_pieces(&[(0.0, 5.0), (1.0, 5.0), (2.0, f64::NAN), (3.0, 5.0), (4.0, 6.0)]);
        assert_eq!(pieces, [vec![(0.0, 5.0), (1.0, 5.0)], vec![(3.0, 5.0), (4.0, 4.0)]]);
        assert_eq!(panel().visible_pieces(&[(0.0, 20.0), (1.0, 30.0)]), Vec::<Vec<(f64, f64)>>::new());
    }
}
