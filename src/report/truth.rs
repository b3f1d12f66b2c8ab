//! How trials stand against the features that their data were made from, as template values.

use super::{choose::spread_over, figures::series_name, ranking::setting_column, text, text::TextTable};
use crate::table::{PeakPlace, RecoverySeries, RunData, TrialRow};
use minijinja::{Value, context};

/// Trials listed against the true features.
const MAX_ROWS: usize = 24;

/// What is known of true features, and of trials by rising L0; `None` where none are known.
pub(super) fn truth(run: &RunData, series: &[RecoverySeries], figure: Option<String>) -> Option<Value> {
    let mut trials: Vec<(&TrialRow, f64)> = run
        .trials
        .iter()
        .filter(|trial| trial.metric("true_l0").is_some() && trial.metric("recovered_share").is_some())
        .filter_map(|trial| Some((trial, trial.metric("l0")?)))
        .collect();
    trials.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.index.cmp(&b.0.index)));
    let share = |trial: &TrialRow| trial.metric("recovered_share").unwrap_or(f64::NEG_INFINITY);
    let (best, best_l0) =
        *trials.iter().max_by(|a, b| share(a.0).total_cmp(&share(b.0)).then(b.1.total_cmp(&a.1)))?;
    let mut columns = vec!["l0", "recovered_share", "mmcs", "uniqueness"];
    let true_l0 = run.true_l0();
    if true_l0.len() > 1 {
        columns.insert(1, "true_l0");
    }
    let mut table = TextTable::default().left("trial");
    for name in &columns {
        table = table.right(text::metric_title(name));
    }
    for key in &run.varied_keys {
        table = setting_column(table, run, key);
    }
    for place in spread_over(trials.len(), MAX_ROWS) {
        let trial = trials[place].0;
        let mut cells = vec![text::code(&trial.id.0)];
        cells.extend(columns.iter().map(|name| text::metric_or_dash(name, trial.metric(name))));
        cells.extend(run.varied_keys.iter().map(|key| text::escape(&text::setting(trial.settings.get(key)))));
        table.row(cells);
    }
    let words: Vec<String> = true_l0.iter().map(|l0| text::metric_value("true_l0", *l0)).collect();
    let peaks: Vec<Value> = series.iter().filter_map(|series| peak(series, true_l0.len() > 1)).collect();
    Some(context! {
        l0 => words.join(" or "),
        figure => figure,
        peaks => peaks,
        best => context! {
            id => best.id.0.clone(),
            share => text::metric_or_dash("recovered_share", best.metric("recovered_share")),
            l0 => text::metric_value("l0", best_l0),
        },
        shown => trials.len().min(MAX_ROWS),
        total => trials.len(),
        table => table.to_value(),
    })
}

/// Where one architecture recovers most.
fn peak(series: &RecoverySeries, with_true_l0: bool) -> Option<Value> {
    let peak = series.peak()?;
    let l0 = |value| text::metric_value("l0", value);
    Some(context! {
        series => series_name(series, with_true_l0),
        share => text::metric_value("recovered_share", peak.best.share),
        l0 => l0(peak.best.l0),
        true_l0 => text::metric_value("true_l0", series.true_l0),
        times => format!("{:.2}", peak.best.l0 / series.true_l0),
        tie => text::metric_difference("recovered_share", peak.tie),
        from => l0(peak.from),
        to => l0(peak.to),
        is_range => peak.to > peak.from,
        place => match peak.place {
            PeakPlace::AtTruth => "at",
            PeakPlace::Below => "below",
            PeakPlace::Above => "above",
        },
        at_end => peak.at_end,
    })
}

#[cfg(test)]
mod tests {
    use crate::report::report;
    use crate::table::{Tables, samples};

    fn markdown(run: &crate::table::RunData) -> String {
        report(run, &Tables::of(run), None).unwrap().markdown
    }

    /// The section's sentences on where recovery is best.
    fn sentences(markdown: &str) -> String {
        let lines = markdown.lines().filter(|line| line.starts_with("- **"));
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_report_says_where_recovery_peaks() {
        let run = samples::toy_run();
        let found = markdown(&run);
        assert!(found.contains("](figures/recovery.svg)"), "{found}");
        assert!(!found.contains("frontier-recovered_share") && !found.contains("frontier-mmcs"), "{found}");
        insta::assert_snapshot!(sentences(&found), @r"
        - **standard**: 98.4 % at L0 8.00, 1.00 times the true L0.
        - **topk**: 98.4 % at L0 8.00, 1.00 times the true L0.
        ");
    }

    #[test]
    fn it_says_so_where_it_does_not_peak_there() {
        let mut run = samples::toy_run();
        for trial in &mut run.trials {
            let l0 = trial.metrics["l0"];
            let share =
                if trial.settings.contains_key("sae.k") { (l0 / 40.0).min(0.5) } else { 0.9 - l0 / 100.0 };
            trial.metrics.insert("recovered_share".to_owned(), share);
        }
        insta::assert_snapshot!(sentences(&markdown(&run)), @r"
        - **standard**: 88.0 % at L0 2.00, 0.25 times the true L0: not at the true L0 but below it. This is the end of what was tried; beyond it there may be more.
        - **topk**: 50.0 % at L0 30.0, 3.75 times the true L0: not at the true L0 but above it. This is the end of what was tried; beyond it there may be more.
        ");
    }

    #[test]
    fn a_plateau_is_told_as_a_range() {
        let mut run = samples::toy_run();
        for trial in &mut run.trials {
            let share = if (4.0..16.0).contains(&trial.metrics["l0"]) { 0.99 } else { 0.5 };
            trial.metrics.insert("recovered_share".to_owned(), share);
        }
        insta::assert_snapshot!(sentences(&markdown(&run)), @r"
        - **standard**: 99.0 % at L0 8.00, 1.00 times the true L0; no more than 1.0 % less from L0 4.00 to 15.0, the true L0 among them.
        - **topk**: 99.0 % at L0 8.00, 1.00 times the true L0; no more than 1.0 % less from L0 4.00 to 15.0, the true L0 among them.
        ");
    }
}
