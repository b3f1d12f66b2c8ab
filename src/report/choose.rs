//! How trials look in figures: which setting gives the colour, which the shape, which is written beside a
//! point; and which trials are drawn when there are too many.

use super::plot::{Axis, Colour, Entry, GREY, INK, Marker, Scale, categorical, sequential};
use super::text;
use crate::table::{RunData, TrialRow, compare_settings, is_sparsity_key};
use serde_json::Value;

/// More distinct values than this get a colour bar instead of one entry each.
const MAX_ENTRIES: usize = 7;
/// Settings with more distinct values than this cannot be shown as shapes.
const MAX_SHAPES: usize = 5;

/// A varied setting with its distinct values in order.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    key: String,
    values: Vec<Value>,
    /// For numbers: their range.
    axis: Option<Axis>,
    /// Whether some trials lack the setting.
    partial: bool,
}

/// How the varied settings of a run appear in figures.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Encoding {
    colour: Option<Shown>,
    shape: Option<Shown>,
    /// The first of these that a trial has is written beside its point.
    labels: Vec<Shown>,
}

impl Encoding {
    /// For scatter plots against L0. A setting of sparsity already shows as the place along that axis, so
    /// others come first for the colour, and it is what is written beside points.
    pub(super) fn against_l0(run: &RunData) -> Self {
        let settings = varied_settings(run);
        let numeric = |shown: &&Shown| shown.axis.is_some();
        let other = |shown: &&Shown| !is_sparsity_key(&shown.key);
        let colour = settings
            .iter()
            .filter(numeric)
            .find(|shown| shown.key == "train.lr")
            .or_else(|| settings.iter().filter(numeric).find(other))
            .or_else(|| settings.iter().find(other))
            .or_else(|| settings.first())
            .cloned();
        let rest = without(&settings, &[&colour]);
        let shape = rest
            .iter()
            .filter(|shown| shown.values.len() <= MAX_SHAPES && !is_sparsity_key(&shown.key))
            .min_by_key(|shown| match shown.key.as_str() {
                "sae.architecture" => 0,
                "sae.d_sae" => 1,
                _ if shown.axis.is_none() => 2,
                _ => 3,
            })
            .cloned();
        let rest = without(&rest, &[&shape]);
        let mut labels: Vec<Shown> =
            rest.iter().filter(|shown| is_sparsity_key(&shown.key)).cloned().collect();
        if labels.is_empty() {
            labels.extend(rest.first().cloned());
        }
        Self { colour, shape, labels }
    }

    /// For curves: colour by the first varied numeric setting, as far as there is one that all trials have.
    pub(super) fn of_curves(run: &RunData) -> Self {
        let settings = varied_settings(run);
        let all_have_it = || settings.iter().filter(|shown| !shown.partial);
        let colour = all_have_it()
            .find(|shown| shown.axis.is_some())
            .or_else(|| all_have_it().next())
            .or_else(|| settings.first())
            .cloned();
        Self { colour, shape: None, labels: Vec::new() }
    }

    pub(super) fn colour(&self, trial: &TrialRow) -> Colour {
        self.colour.as_ref().map_or(categorical(0), |shown| shown.colour(trial.settings.get(&shown.key)))
    }

    pub(super) fn marker(&self, trial: &TrialRow) -> Marker {
        self.shape.as_ref().map_or(Marker::Disc, |shown| shown.marker(trial.settings.get(&shown.key)))
    }

    /// What is written beside a point, if anything.
    pub(super) fn label(&self, trial: &TrialRow) -> Option<String> {
        let value = self.labels.iter().find_map(|shown| trial.settings.get(&shown.key))?;
        match value.as_f64() {
            Some(number) if value.is_f64() => Some(text::significant(number, 2)),
            _ => Some(text::setting(Some(value))),
        }
    }

    /// The keys of the settings that are written beside points.
    pub(super) fn label_keys(&self) -> Vec<&str> {
        self.labels.iter().map(|shown| shown.key.as_str()).collect()
    }

    /// Legend entries; colours are shown as lines when `lines`, as marks otherwise.
    pub(super) fn legend(&self, lines: bool) -> Vec<Entry> {
        let mut entries = Vec::new();
        if let Some(shown) = &self.colour {
            entries.push(Entry::Heading(shown.key.clone()));
            match shown.axis {
                Some(axis) if shown.values.len() > MAX_ENTRIES => entries.push(Entry::Bar(axis)),
                _ => entries.extend(shown.values.iter().map(|value| {
                    let (colour, text) = (shown.colour(Some(value)), text::setting(Some(value)));
                    if lines {
                        Entry::Line { colour, dashed: false, text }
                    } else {
                        Entry::Mark(Marker::Disc, colour, text)
                    }
                })),
            }
            if shown.partial {
                entries.push(Entry::Mark(Marker::Disc, GREY, "without it".to_owned()));
            }
        }
        if let Some(shown) = &self.shape {
            if !entries.is_empty() {
                entries.push(Entry::Gap);
            }
            entries.push(Entry::Heading(shown.key.clone()));
            entries.extend(
                shown
                    .values
                    .iter()
                    .map(|value| Entry::Mark(shown.marker(Some(value)), INK, text::setting(Some(value)))),
            );
        }
        entries
    }
}

impl Shown {
    fn colour(&self, value: Option<&Value>) -> Colour {
        let Some(value) = value.filter(|value| !value.is_null()) else { return GREY };
        match (&self.axis, value.as_f64()) {
            (Some(axis), Some(number)) => sequential(axis.place(number)),
            (Some(_), None) => GREY,
            (None, _) => self.place(value).map_or(GREY, categorical),
        }
    }

    fn marker(&self, value: Option<&Value>) -> Marker {
        Marker::nth(value.and_then(|value| self.place(value)).unwrap_or(0))
    }

    fn place(&self, value: &Value) -> Option<usize> {
        self.values.iter().position(|known| compare_settings(known, value).is_eq())
    }
}

fn without(settings: &[Shown], taken: &[&Option<Shown>]) -> Vec<Shown> {
    let free = |shown: &&Shown| !taken.iter().any(|taken| taken.as_ref().is_some_and(|t| t.key == shown.key));
    settings.iter().filter(free).cloned().collect()
}

/// The varied settings, seeds left out, that have at least two values among the trials.
fn varied_settings(run: &RunData) -> Vec<Shown> {
    let shown = |key: &str| {
        let mut values: Vec<Value> = Vec::new();
        for value in run.trials.iter().filter_map(|trial| trial.settings.get(key)).filter(|v| !v.is_null()) {
            if !values.iter().any(|known| compare_settings(known, value).is_eq()) {
                values.push(value.clone());
            }
        }
        let numbers: Option<Vec<f64>> = values.iter().map(|v| v.as_f64().filter(|_| v.is_number())).collect();
        let axis = numbers.and_then(|numbers| setting_axis(&numbers, 0.0));
        if axis.is_some() {
            values.sort_by(compare_settings);
        }
        let partial = run.trials.iter().any(|trial| trial.settings.get(key).is_none_or(Value::is_null));
        (values.len() > 1).then(|| Shown { key: key.to_owned(), values, axis, partial })
    };
    run.axis_keys().filter_map(shown).collect()
}

/// An axis over the values of a setting: logarithmic when they span more than a factor of 3.
pub(super) fn setting_axis(numbers: &[f64], margin: f64) -> Option<Axis> {
    let low = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let high = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scale = if low > 0.0 && high / low > 3.0 { Scale::Log } else { Scale::Linear };
    Axis::over(scale, numbers.iter().copied(), margin)
}

/// At most `most` of `n` places, evenly spread, first and last included.
pub(super) fn spread_over(n: usize, most: usize) -> Vec<usize> {
    if n <= most {
        return (0..n).collect();
    }
    if most < 2 {
        return (0..most).collect();
    }
    (0..most).map(|i| i * (n - 1) / (most - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::samples;

    #[test]
    fn learning_rate_is_colour_and_sparsity_is_written() {
        let encoding = Encoding::against_l0(&samples::grid_run());
        assert_eq!(encoding.colour.as_ref().unwrap().key, "train.lr");
        assert_eq!(encoding.label_keys(), ["sae.l1_coefficient"]);
        assert_eq!(encoding.shape, None);
    }

    #[test]
    fn architecture_is_the_shape() {
        let encoding = Encoding::against_l0(&samples::random_run(30));
        assert_eq!(encoding.shape.as_ref().unwrap().key, "sae.architecture");
        assert_eq!(encoding.colour.as_ref().unwrap().key, "train.lr");
    }

    #[test]
    fn nothing_varied_means_one_look() {
        let mut run = samples::grid_run();
        run.varied_keys.clear();
        let encoding = Encoding::against_l0(&run);
        assert_eq!(encoding, Encoding { colour: None, shape: None, labels: Vec::new() });
        assert!(encoding.legend(false).is_empty());
        assert_eq!(encoding.colour(&run.trials[0]), categorical(0));
    }

    #[test]
    fn seeds_get_no_colour() {
        let encoding = Encoding::of_curves(&samples::repeats_run());
        assert_eq!(encoding.colour.as_ref().unwrap().key, "sae.l1_coefficient");
    }

    #[test]
    fn curves_are_not_coloured_by_what_some_trials_lack() {
        let mut run = samples::toy_run();
        assert_eq!(Encoding::of_curves(&run).colour.unwrap().key, "train.lr");
        run.varied_keys.retain(|key| key != "train.lr");
        assert_eq!(Encoding::of_curves(&run).colour.unwrap().key, "sae.architecture");
    }

    #[test]
    fn spreading_keeps_both_ends() {
        assert_eq!(spread_over(3, 12), [0, 1, 2]);
        let picked = spread_over(100, 12);
        assert_eq!((picked.len(), picked[0], picked[11]), (12, 0, 99));
        assert_eq!(spread_over(5, 1), [0]);
    }
}
