//! How often latents fire: the share of latents per half decade of firing density, for a few trials.

use super::WIDTH;
use crate::report::{
    plot::{Axis, Canvas, Entry, Panel, PlotError, Rect, Stroke, categorical, draw_legend},
    text,
};
use crate::table::{DENSITY_BIN_WIDTH, DENSITY_START, Frontier, RunData, TrialRow, best_trials};

const HEIGHT: u32 = 330;
const PLOT: Rect = Rect { left: 68.0, top: 18.0, width: 500.0, height: 254.0 };

/// The trials whose histograms are drawn and what each stands for: the best one, and the sparsest, the middle
/// and the densest of the first frontier that has any; no trial twice.
pub(crate) fn density_trials<'a>(
    run: &'a RunData,
    frontiers: &[Frontier],
) -> Vec<(&'static str, &'a TrialRow)> {
    let mut chosen: Vec<(&'static str, &TrialRow)> =
        best_trials(run).into_iter().take(1).map(|trial| ("best", trial)).collect();
    if let Some(frontier) = frontiers.iter().find(|frontier| !frontier.points.is_empty()) {
        let n = frontier.points.len();
        let places = [("sparsest", 0), ("middle", n / 2), ("densest", n - 1)];
        chosen.extend(places.map(|(role, i)| (role, &run.trials[frontier.points[i].row])));
    }
    let mut distinct: Vec<(&'static str, &TrialRow)> = Vec::new();
    for (role, trial) in chosen {
        let known = distinct.iter().any(|(_, known)| known.index == trial.index);
        if !known && trial.log10_density.iter().sum::<u64>() > 0 {
            distinct.push((role, trial));
        }
    }
    distinct
}

/// Draws the figure; `None` when no trial has a histogram.
pub(crate) fn density_figure(trials: &[(&str, &TrialRow)]) -> Result<Option<String>, PlotError> {
    // The first bin holds the latents that never fired. They have no density, so the legend names them.
    let shares = |trial: &TrialRow| -> Vec<f64> {
        let total = trial.log10_density.iter().sum::<u64>().max(1) as f64;
        trial.log10_density.iter().map(|&latents| latents as f64 / total).collect()
    };
    let all: Vec<Vec<f64>> = trials.iter().map(|(_, trial)| shares(trial)).collect();
    let bins = all.iter().map(Vec::len).max().unwrap_or(0);
    let first = (1..bins).find(|&bin| all.iter().any(|shares| shares.get(bin).is_some_and(|&s| s > 0.0)));
    let (Some(first), Some(y)) = (
        first,
        Axis::over(
            crate::report::plot::Scale::Linear,
            all.iter().flat_map(|shares| shares.iter().skip(1).map(|share| 100.0 * share)).chain([0.0]),
            0.0,
        ),
    ) else {
        return Ok(None);
    };
    let edge = |bin: usize| DENSITY_START + DENSITY_BIN_WIDTH * bin as f64;
    let panel = Panel { rect: PLOT, x: Axis::between(edge(first), edge(bins)), y };
    let svg = Canvas::draw(WIDTH, HEIGHT, "Firing densities of latents", |canvas| {
        panel.draw_frame(
            canvas,
            "log10 of the share of tokens on which a latent fires",
            "latents per half decade (%)",
        )?;
        // The best is drawn last, on top.
        for (i, shares) in all.iter().enumerate().rev() {
            let colour = categorical(i);
            let mut outline = vec![panel.at(edge(first), 0.0)];
            for (bin, share) in shares.iter().enumerate().skip(first) {
                outline.push(panel.at(edge(bin), 100.0 * share));
                outline.push(panel.at(edge(bin + 1), 100.0 * share));
            }
            outline.push(panel.at(edge(shares.len()), 0.0));
            canvas.polygon(&outline, colour.alpha(0.12))?;
            canvas.line(&outline, Stroke { colour, width: 1.8 })?;
        }
        let mut entries = Vec::new();
        for (i, ((role, trial), shares)) in trials.iter().zip(&all).enumerate() {
            let l0 = text::metric_or_dash("l0", trial.metric("l0"));
            entries.push(Entry::Line {
                colour: categorical(i),
                dashed: false,
                text: format!("{} ({role})", trial.id.0),
            });
            let never = text::metric_value("dead_share", shares[0]);
            entries.push(Entry::Detail(format!("L0 {l0}, never fired: {never}")));
        }
        let legend = Rect { left: PLOT.right() + 20.0, top: PLOT.top, width: 220.0, height: PLOT.height };
        draw_legend(canvas, legend, &entries)
    })?;
    Ok(Some(svg))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{frontiers, samples};

    #[test]
    fn the_best_comes_first_and_none_twice() {
        let run = samples::grid_run();
        let trials = density_trials(&run, &frontiers(&run));
        assert_eq!((trials[0].0, &trials[0].1.id), ("best", &best_trials(&run)[0].id));
        let mut ids: Vec<_> = trials.iter().map(|(_, trial)| &trial.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), trials.len());
        assert!(trials.len() <= 4);
    }

    #[test]
    fn trials_without_histograms_are_left_out() {
        let mut run = samples::grid_run();
        for trial in &mut run.trials {
            trial.log10_density = vec![0; 20];
        }
        assert!(density_trials(&run, &frontiers(&run)).is_empty());
        assert_eq!(density_figure(&[]).unwrap(), None);
    }

    #[test]
    fn only_dead_latents_mean_no_figure() {
        let mut run = samples::grid_run();
        run.trials[0].log10_density = vec![100, 0, 0, 0];
        assert_eq!(density_figure(&[("best", &run.trials[0])]).unwrap(), None);
    }
}
