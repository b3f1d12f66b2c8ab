//! L0 against how much of the true features was found: a panel for the share and one for the cosine, a line for each
//! architecture, and the true L0.

use super::WIDTH;
use crate::report::{
    plot::{
        Anchor, Axis, Canvas, Entry, INK, Marker, Panel, PlotError, Rect, Scale, Stroke, categorical,
        draw_legend,
    },
    text,
};
use crate::table::{RecoveryPoint, RecoverySeries};

const HEIGHT: u32 = 330;
/// A series of more points than this is drawn without a line.
const MAX_JOINED: usize = 40;

/// What of a point is drawn.
type Quantity = fn(&RecoveryPoint) -> f64;

/// Draws the figure; `None` when there is nothing to draw.
pub(crate) fn recovery_figure(series: &[RecoverySeries]) -> Result<Option<String>, PlotError> {
    let all = || series.iter().flat_map(|series| series.points.iter().chain(&series.others));
    let mut true_l0: Vec<f64> = series.iter().map(|series| series.true_l0).collect();
    true_l0.sort_by(f64::total_cmp);
    true_l0.dedup();
    let l0 = all().map(|point| point.l0).chain(true_l0.iter().copied());
    let Some(x) = Axis::over(Scale::Log, l0, 0.06).filter(|_| all().next().is_some()) else {
        return Ok(None);
    };
    let quantities: [(&str, Quantity); 2] =
        [("recovered_share", |point| point.share), ("mmcs", |point| point.mmcs)];
    let svg = Canvas::draw(WIDTH, HEIGHT, "Recovered features against L0", |canvas| {
        for (nth, (metric, value)) in quantities.into_iter().enumerate() {
            // Shares from 0, so that a fall looks as deep as it is; cosines lie close to each other.
            let floor = (metric == "recovered_share").then_some(0.0);
            let Some(y) = Axis::over(Scale::Linear, all().map(value).chain(floor), 0.05) else { continue };
            let rect = Rect { left: 64.0 + nth as f64 * 316.0, top: 14.0, width: 244.0, height: 262.0 };
            let panel = Panel { rect, x, y };
            panel.draw_frame(
                canvas,
                "L0: active latents per row (log scale)",
                &text::metric_title(metric),
            )?;
            for l0 in &true_l0 {
                let x = panel.at(*l0, 0.0).0;
                canvas.dashed(&[(x, rect.top), (x, rect.bottom())], Stroke { colour: INK, width: 1.3 })?;
            }
            if let [l0] = true_l0[..] {
                let at = panel.at(l0, 0.0).0;
                let words = format!("true L0 {}", text::metric_value("true_l0", l0));
                canvas.text(&words, (at + 5.0, rect.bottom() - 9.0), Anchor::Start, 10.5, INK)?;
            }
            draw_series(canvas, &panel, series, value)?;
        }
        let mut entries: Vec<Entry> = series
            .iter()
            .enumerate()
            .map(|(i, series)| {
                let name = name(series, true_l0.len() > 1);
                Entry::Mark(Marker::nth(i), categorical(i), name)
            })
            .collect();
        entries.push(Entry::Line { colour: INK, dashed: true, text: "true L0".to_owned() });
        if series.iter().any(|series| !series.others.is_empty()) {
            entries.push(Entry::Gap);
            entries.push(Entry::Note("Hollow: better with".to_owned()));
            entries.push(Entry::Note("other settings at".to_owned()));
            entries.push(Entry::Note("the same sparsity".to_owned()));
        }
        draw_legend(canvas, Rect { left: 642.0, top: 14.0, width: 170.0, height: 262.0 }, &entries)
    })?;
    Ok(Some(svg))
}

/// What a series is called, with its true L0 where there are several.
pub(crate) fn name(series: &RecoverySeries, with_true_l0: bool) -> String {
    if with_true_l0 {
        format!("{}, true L0 {}", series.architecture, text::metric_value("true_l0", series.true_l0))
    } else {
        series.architecture.clone()
    }
}

fn draw_series(
    canvas: &mut Canvas<'_>,
    panel: &Panel,
    series: &[RecoverySeries],
    value: fn(&RecoveryPoint) -> f64,
) -> Result<(), PlotError> {
    let places = |points: &[RecoveryPoint]| -> Vec<(f64, f64)> {
        let places = points.iter().map(|point| (point.l0, value(point)));
        places.filter(|place| place.1.is_finite()).collect()
    };
    for (i, series) in series.iter().enumerate() {
        let colour = categorical(i);
        for (x, y) in places(&series.others) {
            Marker::nth(i).draw_hollow(canvas, panel.at(x, y), 3.0, colour.alpha(0.6))?;
        }
        let points = places(&series.points);
        if points.len() <= MAX_JOINED {
            panel.curve(canvas, &points, Stroke { colour, width: 1.7 }, false)?;
        }
        for (x, y) in points {
            Marker::nth(i).draw(canvas, panel.at(x, y), 4.4, colour)?;
        }
    }
    Ok(())
}
