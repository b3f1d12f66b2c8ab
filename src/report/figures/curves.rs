//! Training curves of a few trials, one panel per quantity.

use super::WIDTH;
use crate::report::{
    choose::{Encoding, spread_over},
    plot::{Axis, Canvas, Entry, Panel, PlotError, RED, Rect, Scale, Stroke, draw_cross, draw_legend},
};
use crate::table::{Outcome, RunData, TrialRow, ranked_groups};

/// Curves in one figure.
const MAX_CURVES: usize = 12;
/// Of these, trials that diverged.
const MAX_DIVERGED: usize = 2;
/// Points of a curve; more are averaged.
const MAX_POINTS: usize = 200;
const PANEL_HEIGHT: f64 = 178.0;

/// The figure and what it shows.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curves {
    /// SVG text.
    pub(crate) svg: String,
    /// Trials drawn.
    pub(crate) shown: usize,
    /// Trials that have curves.
    pub(crate) available: usize,
    /// Whether a diverged trial is among those drawn.
    pub(crate) diverged: bool,
    /// Names of the metrics drawn.
    pub(crate) metrics: Vec<&'static str>,
}

/// What a panel shows.
struct Quantity {
    metric: &'static str,
    title: &'static str,
    log: bool,
}

/// A panel with what it shows of each trial.
struct Drawn {
    quantity: &'static Quantity,
    y: Axis,
    curves: Vec<Vec<(f64, f64)>>,
}

static QUANTITIES: [Quantity; 4] = [
    Quantity { metric: "losses/overall_loss", title: "overall loss", log: true },
    Quantity { metric: "metrics/l0", title: "L0: latents per token", log: true },
    Quantity { metric: "metrics/explained_variance", title: "explained variance", log: false },
    Quantity { metric: "sparsity/dead_features", title: "dead latents", log: false },
];

/// Draws the figure; `None` when no trial has a curve of two points.
pub(crate) fn curves_figure(run: &RunData) -> Result<Option<Curves>, PlotError> {
    let trials = chosen_trials(run);
    let curve = |trial: &TrialRow, metric: &str| -> Vec<(f64, f64)> {
        let points =
            trial.curve.iter().filter_map(|point| Some((point.step as f64, *point.values.get(metric)?)));
        thinned(points.filter(|point| point.1.is_finite()).collect())
    };
    let mut panels: Vec<Drawn> = Vec::new();
    for quantity in &QUANTITIES {
        let curves: Vec<Vec<(f64, f64)>> = trials.iter().map(|trial| curve(trial, quantity.metric)).collect();
        if let Some(y) = value_axis(quantity, &trials, &curves) {
            panels.push(Drawn { quantity, y, curves });
        }
    }
    let steps = panels.iter().flat_map(|drawn| drawn.curves.iter().flatten().map(|point| point.0));
    let last_step = steps.fold(0.0, f64::max);
    if panels.is_empty() || last_step <= 0.0 {
        return Ok(None);
    }
    let encoding = Encoding::of_curves(run);
    let diverged = trials.iter().any(|trial| trial.outcome == Outcome::Diverged);
    let rows = panels.len().div_ceil(2);
    let height = 14.0 + rows as f64 * (PANEL_HEIGHT + 58.0);
    let svg = Canvas::draw(WIDTH, height as u32, "Training curves", |canvas| {
        for (i, Drawn { quantity, y, curves }) in panels.iter().enumerate() {
            let rect = Rect {
                left: 64.0 + (i % 2) as f64 * 312.0,
                top: 14.0 + (i / 2) as f64 * (PANEL_HEIGHT + 58.0),
                width: 236.0,
                height: PANEL_HEIGHT,
            };
            let panel = Panel { rect, x: Axis::between(0.0, last_step), y: *y };
            panel.draw_frame(canvas, "training step", quantity.title)?;
            for (trial, points) in trials.iter().zip(curves) {
                let lost = trial.outcome == Outcome::Diverged;
                let colour = if lost { RED } else { encoding.colour(trial) };
                panel.curve(canvas, points, Stroke { colour: colour.alpha(0.9), width: 1.5 }, lost)?;
                if let Some(&(step, value)) = points.last().filter(|_| lost) {
                    let (x, y) = panel.at(step, value);
                    draw_cross(canvas, (x, y.clamp(rect.top, rect.bottom())), RED)?;
                }
            }
        }
        let mut entries = encoding.legend(true);
        if diverged {
            entries.push(Entry::Gap);
            entries.push(Entry::Line { colour: RED, dashed: true, text: "diverged".to_owned() });
        }
        let left = if panels.len() == 1 { 330.0 } else { 634.0 };
        draw_legend(canvas, Rect { left, top: 14.0, width: 170.0, height: PANEL_HEIGHT }, &entries)
    })?;
    Ok(Some(Curves {
        svg,
        shown: trials.len(),
        available: run.trials.iter().filter(|trial| has_curve(trial)).count(),
        diverged,
        metrics: panels.iter().map(|drawn| drawn.quantity.metric).collect(),
    }))
}

fn has_curve(trial: &TrialRow) -> bool {
    trial.curve.len() > 1
}

/// Trials to draw, in plan order: evenly spread over the ranking by the objective, best and worst included,
/// and up to [`MAX_DIVERGED`] that diverged. Of repeats over seeds one is enough. Where nothing has
/// finished, whatever has a curve.
fn chosen_trials(run: &RunData) -> Vec<&TrialRow> {
    let ranked: Vec<&TrialRow> = ranked_groups(run)
        .into_iter()
        .filter_map(|group| group.trials.into_iter().find(|t| t.outcome == Outcome::Done && has_curve(t)))
        .collect();
    let diverged = run.trials.iter().filter(|trial| has_curve(trial) && trial.outcome == Outcome::Diverged);
    let mut chosen: Vec<&TrialRow> = diverged.take(MAX_DIVERGED).collect();
    let room = MAX_CURVES - chosen.len();
    if ranked.is_empty() {
        let others: Vec<&TrialRow> = run
            .trials
            .iter()
            .filter(|trial| has_curve(trial) && trial.outcome != Outcome::Diverged)
            .collect();
        chosen.extend(spread_over(others.len(), room).into_iter().map(|i| others[i]));
    } else {
        chosen.extend(spread_over(ranked.len(), room).into_iter().map(|i| ranked[i]));
    }
    chosen.sort_by_key(|trial| trial.index);
    chosen
}

/// The axis over what matters: curves of trials that diverged are cut where they leave the others, and on a
/// linear axis the first moments of training are cut where they would press the rest together.
fn value_axis(quantity: &Quantity, trials: &[&TrialRow], curves: &[Vec<(f64, f64)>]) -> Option<Axis> {
    let healthy = |row: &usize| trials[*row].outcome != Outcome::Diverged;
    let mut rows: Vec<usize> = (0..trials.len()).filter(healthy).collect();
    if rows.iter().all(|&row| curves[row].len() < 2) {
        rows = (0..trials.len()).collect();
    }
    let mut values: Vec<f64> = rows.iter().flat_map(|&row| curves[row].iter().map(|point| point.1)).collect();
    values.sort_by(f64::total_cmp);
    let (&low, &high) = (values.first()?, values.last()?);
    if quantity.log && low > 0.0 && high / low > 8.0 {
        return Axis::over(Scale::Log, values, 0.05);
    }
    let lower_quarter = values[values.len() / 4];
    let cut = low.max(lower_quarter - 1.5 * (high - lower_quarter));
    Axis::over(Scale::Linear, values.into_iter().filter(|value| *value >= cut), 0.05)
}

/// At most [`MAX_POINTS`] points, each the mean of its neighbours.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points;
    }
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|point| point.0).sum::<f64>() / n, part.iter().map(|point| point.1).sum::<f64>() / n)
    };
    let end = |i: usize| i * points.len() / MAX_POINTS;
    (0..MAX_POINTS).map(|i| mean(&points[end(i)..end(i + 1)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::samples;

    #[test]
    fn few_curves_are_drawn_of_many() {
        let curves = curves_figure(&samples::random_run(60)).unwrap().unwrap();
        assert_eq!((curves.shown, curves.available), (MAX_CURVES, 60));
    }

    #[test]
    fn without_curves_there_is_no_figure() {
        let mut run = samples::grid_run();
        for trial in &mut run.trials {
            trial.curve.clear();
        }
        assert_eq!(curves_figure(&run).unwrap(), None);
    }

    #[test]
    fn thinning_keeps_means() {
        let points: Vec<(f64, f64)> = (0..1000).map(|i| (f64::from(i), 2.0)).collect();
        let few = thinned(points);
        assert_eq!((few.len(), few[0], few[199]), (200, (2.0, 2.0), (997.0, 2.0)));
    }
}
