//! A drawing surface in page pixels over plotters' SVG backend.
//!
//! plotters draws on whole numbers. The canvas therefore draws [`FINE`] times larger than the page shows, so
//! that lines keep their shape; the SVG's `viewBox` scales it back.

use super::Colour;
use plotters::{
    coord::Shift,
    prelude::{Circle, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea, PathElement, Polygon, SVGBackend},
    style::{
        FontStyle, FontTransform, IntoTextStyle, ShapeStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

/// Drawing units in one pixel of the page.
const FINE: f64 = 8.0;

/// A figure that could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw a figure: {0}")]
pub struct PlotError(String);

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for PlotError {
    fn from(err: DrawingAreaErrorKind<E>) -> Self {
        Self(err.to_string())
    }
}

/// A rectangle of the page, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rect {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
}

impl Rect {
    pub(crate) fn right(self) -> f64 {
        self.left + self.width
    }

    pub(crate) fn bottom(self) -> f64 {
        self.top + self.height
    }
}

/// Which point of a text its position names; text is always centred on its line's height.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// Colour and width of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stroke {
    pub(crate) colour: Colour,
    pub(crate) width: f64,
}

impl Stroke {
    fn style(self) -> ShapeStyle {
        let width = (self.width * FINE).round().max(1.0) as u32;
        ShapeStyle { color: self.colour.rgba(), filled: false, stroke_width: width }
    }
}

/// One figure while it is drawn.
pub(crate) struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
}

impl Canvas<'_> {
    /// Draws a figure of `width` × `height` pixels and returns its SVG. `title` is read out by screen readers.
    pub(crate) fn draw(
        width: u32,
        height: u32,
        title: &str,
        paint: impl FnOnce(&mut Canvas<'_>) -> Result<(), PlotError>,
    ) -> Result<String, PlotError> {
        let (fine_width, fine_height) = (width * FINE as u32, height * FINE as u32);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (fine_width, fine_height)).into_drawing_area();
            let mut canvas = Canvas { area };
            paint(&mut canvas)?;
            canvas.area.present()?;
        }
        let old = format!("<svg width=\"{fine_width}\" height=\"{fine_height}\" ");
        let rest = svg.strip_prefix(&old).expect("invariant: the backend opens with the size");
        let (attributes, body) = rest.split_once(">\n").expect("invariant: the opening tag ends its line");
        let title = title.replace('&', "&amp;").replace('<', "&lt;");
        Ok(format!(
            "<svg width=\"{width}\" height=\"{height}\" role=\"img\" {attributes}>\n<title>{title}</title>\n{body}"
        ))
    }

    /// A line through points.
    pub(crate) fn line(&mut self, points: &[(f64, f64)], stroke: Stroke) -> Result<(), PlotError> {
        if points.len() < 2 {
            return Ok(());
        }
        let fine: Vec<(i32, i32)> = points.iter().map(|&point| to_fine(point)).collect();
        Ok(self.area.draw(&PathElement::new(fine, stroke.style()))?)
    }

    /// A dashed line through points; dashes start anew at the first point only.
    pub(crate) fn dashed(&mut self, points: &[(f64, f64)], stroke: Stroke) -> Result<(), PlotError> {
        let (dash, gap) = (5.0, 4.0);
        let mut walked = 0.0f64;
        for pair in points.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let length = (x1 - x0).hypot(y1 - y0);
            let mut at = 0.0f64;
            while at < length {
                let phase = walked % (dash + gap);
                let (drawn, left): (bool, f64) =
                    if phase < dash { (true, dash - phase) } else { (false, dash + gap - phase) };
                // A step that rounds to nothing would never end.
                let step = left.min(length - at).max(1e-6);
                let point = |at: f64| (x0 + (x1 - x0) * at / length, y0 + (y1 - y0) * at / length);
                if drawn {
                    self.line(&[point(at), point((at + step).min(length))], stroke)?;
                }
                at += step;
                walked += step;
            }
        }
        Ok(())
    }

    /// A filled polygon.
    pub(crate) fn polygon(&mut self, points: &[(f64, f64)], colour: Colour) -> Result<(), PlotError> {
        let fine: Vec<(i32, i32)> = points.iter().map(|&point| to_fine(point)).collect();
        Ok(self.area.draw(&Polygon::new(fine, colour.rgba()))?)
    }

    /// A filled disc.
    pub(crate) fn disc(&mut self, centre: (f64, f64), radius: f64, colour: Colour) -> Result<(), PlotError> {
        let style = ShapeStyle { color: colour.rgba(), filled: true, stroke_width: 0 };
        Ok(self.area.draw(&Circle::new(to_fine(centre), (radius * FINE).round() as i32, style))?)
    }

    /// A circle's line.
    pub(crate) fn ring(&mut self, centre: (f64, f64), radius: f64, stroke: Stroke) -> Result<(), PlotError> {
        Ok(self.area.draw(&Circle::new(to_fine(centre), (radius * FINE).round() as i32, stroke.style()))?)
    }

    /// Text of `size` pixels.
    pub(crate) fn text(
        &mut self,
        text: &str,
        at: (f64, f64),
        anchor: Anchor,
        size: f64,
        colour: Colour,
    ) -> Result<(), PlotError> {
        self.styled_text(text, at, anchor, size, colour, FontStyle::Normal, FontTransform::None)
    }

    /// Bold text of `size` pixels.
    pub(crate) fn bold_text(
        &mut self,
        text: &str,
        at: (f64, f64),
        anchor: Anchor,
        size: f64,
        colour: Colour,
    ) -> Result<(), PlotError> {
        self.styled_text(text, at, anchor, size, colour, FontStyle::Bold, FontTransform::None)
    }

    /// Text that reads upwards, centred on `at`.
    pub(crate) fn upward_text(
        &mut self,
        text: &str,
        at: (f64, f64),
        size: f64,
        colour: Colour,
    ) -> Result<(), PlotError> {
        self.styled_text(text, at, Anchor::Middle, size, colour, FontStyle::Normal, FontTransform::Rotate270)
    }

    #[expect(clippy::too_many_arguments, reason = "private, behind three narrower ones")]
    fn styled_text(
        &mut self,
        text: &str,
        at: (f64, f64),
        anchor: Anchor,
        size: f64,
        colour: Colour,
        style: FontStyle,
        transform: FontTransform,
    ) -> Result<(), PlotError> {
        let h_pos = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let colour = colour.rgba();
        // The backend divides font sizes by 1.24.
        let style = ("sans-serif", size * FINE * 1.24, style)
            .into_text_style(&self.area)
            .color(&colour)
            .transform(transform)
            .pos(Pos::new(h_pos, VPos::Center));
        Ok(self.area.draw_text(text, &style, to_fine(at))?)
    }
}

/// Width of a text in pixels, roughly: the page's font is not known here.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    let narrow =
        |c: char| matches!(c, '.' | ',' | ':' | ';' | 'i' | 'l' | 'j' | '\'' | '|' | ' ' | 't' | 'f' | 'r');
    let em: f64 = text.chars().map(|c| if narrow(c) { 0.33 } else { 0.6 }).sum();
    em * size
}

fn to_fine((x, y): (f64, f64)) -> (i32, i32) {
    ((x * FINE).round() as i32, (y * FINE).round() as i32)
}
