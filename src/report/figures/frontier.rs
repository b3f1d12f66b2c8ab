//! L0 against a fidelity metric: one mark per finished trial, the frontier as a line.

use super::WIDTH;
use crate::report::{
    choose::Encoding,
    plot::{
        Anchor, Axis, Canvas, Entry, INK, Marker, Panel, PlotError, Rect, Scale, Stroke, draw_legend,
        text_width,
    },
    text,
};
use crate::table::{Frontier, RunData, TrialRow};

const HEIGHT: u32 = 440;
const PLOT: Rect = Rect { left: 68.0, top: 18.0, width: 560.0, height: 364.0 };
/// With more trials than this only those on the frontier get their text.
const MAX_LABELLED: usize = 40;
/// With more trials than this the marks are smaller.
const MANY: usize = 150;

/// Draws the figure; `None` when no finished trial has both numbers.
pub(crate) fn frontier_figure(run: &RunData, frontier: &Frontier) -> Result<Option<String>, PlotError> {
    let points: Vec<(&TrialRow, f64, f64)> = run
        .trials
        .iter()
        .filter_map(|trial| Some((trial, trial.metric("l0")?, trial.metric(frontier.metric)?)))
        .filter(|point| point.1 > 0.0)
        .collect();
    let true_l0 = run.true_l0();
    let all_l0 = points.iter().map(|point| point.1).chain(true_l0.iter().copied());
    let Some(x) = Axis::over(Scale::Log, all_l0, 0.06).filter(|_| !points.is_empty()) else {
        return Ok(None);
    };
    let on_frontier: Vec<(f64, f64)> = frontier
        .points
        .iter()
        .map(|point| (point.l0, point.fidelity))
        .filter(|point| point.0 > 0.0)
        .collect();
    let floor = lowest_shown(&points, &on_frontier);
    let shown = points.iter().map(|point| point.2).filter(|value| *value >= floor);
    let Some(y) = Axis::over(Scale::Linear, shown, 0.06) else { return Ok(None) };
    let panel = Panel { rect: PLOT, x, y };
    let encoding = Encoding::against_l0(run);
    let title = text::metric_title(frontier.metric);

    let svg = Canvas::draw(WIDTH, HEIGHT, &format!("{title} against L0"), |canvas| {
        panel.draw_frame(
            canvas,
            "L0: active latents per token (log scale; sparser to the left)",
            &format!("{title} (higher is better)"),
        )?;
        for l0 in &true_l0 {
            let x = panel.at(*l0, 0.0).0;
            canvas.dashed(&[(x, PLOT.top), (x, PLOT.bottom())], Stroke { colour: INK, width: 1.3 })?;
        }
        panel.curve(canvas, &on_frontier, Stroke { colour: INK, width: 1.6 }, false)?;
        let many = points.len() > MANY;
        let mut below = 0;
        let mut placed = Vec::new();
        for &(trial, l0, value) in &points {
            let kept = on_frontier.contains(&(l0, value));
            let (marker, colour) = (encoding.marker(trial), encoding.colour(trial));
            if value < floor {
                below += 1;
                let at = (panel.at(l0, floor).0, PLOT.bottom() - 6.0);
                Marker::TriangleDown.draw_hollow(canvas, at, 4.0, colour)?;
            } else {
                let at = panel.at(l0, value);
                if kept {
                    marker.draw(canvas, at, if many { 4.5 } else { 5.5 }, colour)?;
                } else {
                    marker.draw_hollow(canvas, at, if many { 2.4 } else { 4.2 }, colour)?;
                }
                placed.push((trial, at, kept));
            }
        }
        write_labels(canvas, &encoding, &placed)?;
        let mut entries = encoding.legend(false);
        if !entries.is_empty() {
            entries.push(Entry::Gap);
        }
        entries.push(Entry::Line { colour: INK, dashed: false, text: "frontier".to_owned() });
        entries.push(Entry::Detail("hollow: beaten by".to_owned()));
        entries.push(Entry::Detail("another trial".to_owned()));
        if !true_l0.is_empty() {
            let what = "true features per row".to_owned();
            entries.push(Entry::Line { colour: INK, dashed: true, text: what });
        }
        let keys = encoding.label_keys();
        if !keys.is_empty() {
            entries.push(Entry::Gap);
            entries.push(Entry::Note("Beside points:".to_owned()));
            entries.extend(keys.into_iter().map(|key| Entry::Note(key.to_owned())));
        }
        if below > 0 {
            entries.push(Entry::Gap);
            entries.push(Entry::Mark(Marker::TriangleDown, INK, format!("{below} far below the panel")));
        }
        let legend = Rect { left: PLOT.right() + 22.0, top: PLOT.top, width: 160.0, height: PLOT.height };
        draw_legend(canvas, legend, &entries)
    })?;
    Ok(Some(svg))
}

/// The lowest fidelity that is drawn to scale. A few trials that went badly wrong would press all others
/// into a line at the top; the frontier itself is always shown whole.
fn lowest_shown(points: &[(&TrialRow, f64, f64)], on_frontier: &[(f64, f64)]) -> f64 {
    let mut values: Vec<f64> = points.iter().map(|point| point.2).collect();
    values.sort_by(f64::total_cmp);
    let Some(&highest) = values.last() else { return f64::NEG_INFINITY };
    let lower_quarter = values[values.len() / 4];
    let bound = lower_quarter - 1.5 * (highest - lower_quarter);
    on_frontier.iter().map(|point| point.1).fold(bound, f64::min)
}

/// Writes what each point is, where there is room beside it: points on the frontier first.
fn write_labels(
    canvas: &mut Canvas<'_>,
    encoding: &Encoding,
    placed: &[(&TrialRow, (f64, f64), bool)],
) -> Result<(), PlotError> {
    let size = 10.5;
    let mark = |&(_, (x, y), _): &(&TrialRow, (f64, f64), bool)| Rect {
        left: x - 5.0,
        top: y - 5.0,
        width: 10.0,
        height: 10.0,
    };
    let mut taken: Vec<Rect> = placed.iter().map(mark).collect();
    let few = placed.len() <= MAX_LABELLED;
    let in_order = placed.iter().filter(|point| point.2).chain(placed.iter().filter(|point| few && !point.2));
    let mut written: Vec<(String, f64, f64)> = Vec::new();
    for (trial, (x, y), _) in in_order {
        let Some(label) = encoding.label(trial) else { continue };
        // One label serves a cluster, as of repeats over seeds.
        if written.iter().any(|(known, wx, wy)| *known == label && (wx - x).hypot(wy - y) < 22.0) {
            continue;
        }
        let width = text_width(&label, size);
        let half = width / 2.0;
        // The frontier rises to the right, so that below right and above left are off the line.
        let places = [
            (x + 5.0 + half, y + 11.0),
            (x - 5.0 - half, y - 11.0),
            (*x, y + 14.0),
            (*x, y - 14.0),
            (x + 9.0 + half, *y),
            (x - 9.0 - half, *y),
        ];
        for (cx, cy) in places {
            let own = Rect { left: cx - half, top: cy - size / 2.0, width, height: size };
            let inside = own.left > PLOT.left + 2.0
                && own.right() < PLOT.right() + 12.0
                && own.top > PLOT.top - 8.0
                && own.bottom() < PLOT.bottom() - 2.0;
            if inside && !taken.iter().any(|other| overlap(own, *other)) {
                canvas.text(&label, (cx, cy), Anchor::Middle, size, INK)?;
                taken.push(own);
                written.push((label, *x, *y));
                break;
            }
        }
    }
    Ok(())
}

fn overlap(a: Rect, b: Rect) -> bool {
    a.left < b.right() && b.left < a.right() && a.top < b.bottom() && b.top < a.bottom()
}
