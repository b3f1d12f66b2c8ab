//! Words about axes: what a best value on the edge of its axis means and what to try next.

use super::text;
use crate::metric::Goal;
use crate::table::{AxisEffect, Edge, LevelRange, RunData, Side};

/// What to say about the ends of an axis: when the best choice lies at one, or when the values at one come
/// closest to the frontier.
pub(super) fn edge_words(run: &RunData, effect: &AxisEffect) -> Option<String> {
    let key = text::code(&effect.key);
    let title = text::metric_title(&run.objective.metric);
    let Some(edge) = &effect.edge else {
        let closest = effect.closest.as_ref()?;
        let edge = closest.edge.as_ref()?;
        let level = text::code(&level_words(&effect.levels[closest.level].range));
        let advice = advice(edge);
        return Some(format!(
            "{key}: at equal L0, {level}, {} tried, comes closest to the frontier. {advice}",
            end_words(effect, edge).trim_start_matches("within ")
        ));
    };
    let value = text::code(&text::number(edge.value));
    let end = end_words(effect, edge);
    if edge.along_frontier {
        let next = next_words(edge).map_or(String::new(), |next| format!(" (the next step would be {next})"));
        return Some(format!(
            "{key}: best at {value}, {end} tried, where L0 is highest. This setting trades sparsity for \
             fidelity, so that its best by {title} alone says little; go beyond it only when the frontier does \
             not reach the L0 you need{next}."
        ));
    }
    let here = effect.levels.iter().position(|level| holds(&level.range, edge.value));
    let gap = |level: usize| effect.levels[level].gap;
    match (&effect.closest, here) {
        (Some(closest), Some(here)) if closest.level != here && gap(here) > gap(closest.level) => {
            let level = text::code(&level_words(&effect.levels[closest.level].range));
            let gaps = [here, closest.level].map(|level| format!("{:.4}", gap(level).unwrap_or_default()));
            Some(format!(
                "{key}: best at {value}, {end} tried. At equal L0, though, {level} comes closer to the \
                 frontier (mean gap {} against {}): the lead may be sparsity given up, not a better setting.",
                gaps[1], gaps[0]
            ))
        }
        _ => Some(format!("{key}: best at {value}, {end} tried. {}", advice(edge))),
    }
}

fn advice(edge: &Edge) -> String {
    let advice = match (next_words(edge), edge.side) {
        (Some(next), _) => format!("The optimum may lie beyond: try {next} next."),
        (None, Side::Lower) => "It cannot go much lower.".to_owned(),
        (None, Side::Upper) => "It cannot go much higher.".to_owned(),
    };
    let caveat = if edge.two_values { " Of two values, one is always at an end." } else { "" };
    advice + caveat
}

/// `the smallest value`, or a part of the values where they are shown as ranges.
fn end_words(effect: &AxisEffect, edge: &Edge) -> &'static str {
    let ranges = effect.levels.iter().any(|level| matches!(level.range, LevelRange::Between(..)));
    match (edge.side, ranges) {
        (Side::Lower, false) => "the smallest value",
        (Side::Lower, true) => "within the smallest fifth of the values",
        (Side::Upper, false) => "the largest value",
        (Side::Upper, true) => "within the largest fifth of the values",
    }
}

fn holds(range: &LevelRange, number: f64) -> bool {
    match range {
        LevelRange::One(value) => value.as_f64() == Some(number),
        LevelRange::Between(from, to) => (*from..=*to).contains(&number),
    }
}

fn next_words(edge: &Edge) -> Option<String> {
    edge.next.map(|next| text::code(&text::number(next)))
}

/// `larger is better` or `smaller is better`.
pub(super) fn goal_words(goal: Goal) -> &'static str {
    match goal {
        Goal::Maximize => "larger is better",
        Goal::Minimize => "smaller is better",
    }
}

/// The values of a level.
pub(super) fn level_words(range: &LevelRange) -> String {
    match range {
        LevelRange::One(value) => text::escape(&text::setting(Some(value))),
        LevelRange::Between(from, to) if from == to => text::number(*from),
        LevelRange::Between(from, to) => format!("{} to {}", text::number(*from), text::number(*to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Tables, samples};

    fn words(run: &RunData, key: &str) -> Option<String> {
        let effects = Tables::of(run).effects;
        edge_words(run, effects.iter().find(|effect| effect.key == key).unwrap())
    }

    #[test]
    fn sparsity_axes_are_not_pushed_further() {
        let words = words(&samples::grid_run(), "sae.l1_coefficient").unwrap();
        assert!(words.contains("trades sparsity"), "{words}");
    }

    #[test]
    fn an_optimum_inside_needs_no_words() {
        let mut run = samples::grid_run();
        // Only trials of one sparsity: no axis can look better by being denser.
        run.trials.retain(|trial| trial.settings["sae.l1_coefficient"].as_f64() == Some(5.0));
        assert_eq!(words(&run, "train.lr"), None);
    }

    #[test]
    fn a_lead_that_is_sparsity_given_up_is_called_so() {
        let mut run = samples::grid_run();
        for trial in &mut run.trials {
            if trial.settings["train.lr"].as_f64() == Some(1e-5) {
                trial.metrics.insert("ce_loss_score".to_owned(), 0.95);
            }
        }
        let best =
            run.trials.iter_mut().find(|trial| trial.settings["train.lr"].as_f64() == Some(1e-5)).unwrap();
        best.metrics.insert("ce_loss_score".to_owned(), 0.99);
        let words = words(&run, "train.lr").unwrap();
        assert!(words.contains("smallest value tried") && words.contains("sparsity given up"), "{words}");
    }

    #[test]
    fn an_optimum_at_the_end_names_the_next_value() {
        let mut run = samples::grid_run();
        run.trials.retain(|trial| trial.settings["train.lr"].as_f64().unwrap() < 2e-4);
        for (index, trial) in run.trials.iter_mut().enumerate() {
            trial.index = index;
        }
        let words = words(&run, "train.lr").unwrap();
        assert!(words.contains("largest value tried") && words.contains("try `2.5e-4` next"), "{words}");
        assert!(words.contains("Of two values"), "{words}");
    }
}
