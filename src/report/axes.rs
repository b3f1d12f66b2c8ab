//! Words about axes: what a best value on the edge of its axis means and what to try next.

use super::text;
use crate::metric::Goal;
use crate::table::{AxisEffect, Edge, LevelRange, RunData, Side};

/// What to say when the best choice lies on the outermost value of an axis.
pub(super) fn edge_words(run: &RunData, effect: &AxisEffect) -> Option<String> {
    let edge = effect.edge.as_ref()?;
    let key = text::code(&effect.key);
    let value = text::code(&text::number(edge.value));
    let end = match edge.side {
        Side::Lower => "smallest",
        Side::Upper => "largest",
    };
    if edge.along_frontier {
        let next = next_words(edge).map_or(String::new(), |next| format!(" (the next step would be {next})"));
        return Some(format!(
            "{key}: best at {value}, the {end} value tried, where L0 is highest. This setting trades sparsity \
             for fidelity, so that its best by {} alone says little; go beyond it only when the frontier does \
             not reach the L0 you need{next}.",
            text::metric_title(&run.objective.metric)
        ));
    }
    let among = if matches!(effect.levels.first().map(|level| &level.range), Some(LevelRange::Between(..))) {
        format!("among the {end} values tried")
    } else {
        format!("the {end} value tried")
    };
    let advice = match (next_words(edge), edge.side) {
        (Some(next), _) => format!("The optimum may lie beyond: try {next} next."),
        (None, Side::Lower) => "It cannot go much lower.".to_owned(),
        (None, Side::Upper) => "It cannot go much higher.".to_owned(),
    };
    let caveat = if edge.two_values { " With two values the best is always at an end." } else { "" };
    Some(format!("{key}: best at {value}, {among}. {advice}{caveat}"))
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
        assert_eq!(words(&samples::grid_run(), "train.lr"), None);
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
        assert!(words.contains("With two values"), "{words}");
    }
}
