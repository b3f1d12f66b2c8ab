//! Whole reports of made-up runs, as snapshots, and runs that lack almost everything.

use super::report;
use crate::table::{Outcome, RunData, Tables, samples};

fn markdown(run: &RunData) -> String {
    report(run, &Tables::of(run), None).unwrap().markdown
}

#[test]
fn a_grid() {
    insta::assert_snapshot!(markdown(&samples::grid_run()));
}

#[test]
fn repeats() {
    insta::assert_snapshot!(markdown(&samples::repeats_run()));
}

#[test]
fn a_random_search_under_way() {
    let mut run = samples::random_run(40);
    for trial in &mut run.trials[30..] {
        trial.outcome = Outcome::Pending;
        trial.metrics.clear();
        trial.curve.clear();
        trial.secs = None;
        trial.tokens_per_sec = None;
        trial.slot = None;
    }
    run.notes.push("3 combinations excluded by `sae.d_sae >= 16384 and train.lr > 5e-4`".to_owned());
    insta::assert_snapshot!(markdown(&run));
}

#[test]
fn nothing_finished() {
    let mut run = samples::grid_run();
    run.stores.clear();
    for trial in &mut run.trials {
        trial.outcome = Outcome::Pending;
        trial.metrics.clear();
        trial.log10_density.clear();
        trial.curve.clear();
        trial.secs = None;
    }
    insta::assert_snapshot!(markdown(&run));
}

/// Every part of a report may be missing; none of these may fail or name a figure that is not there.
#[test]
fn any_part_may_be_missing() {
    let mut runs: Vec<RunData> = Vec::new();
    let mut base = samples::grid_run();
    base.trials.clear();
    runs.push(base);
    let mut one = samples::grid_run();
    one.trials.truncate(1);
    runs.push(one.clone());
    one.varied_keys.clear();
    runs.push(one);
    let mut no_keys = samples::grid_run();
    no_keys.varied_keys.clear();
    runs.push(no_keys);
    let mut top_zero = samples::grid_run();
    top_zero.top = 0;
    runs.push(top_zero);
    for missing in ["l0", "ce_loss_score", "explained_variance", "dead_share", "dense_share"] {
        let mut run = samples::grid_run();
        for trial in &mut run.trials {
            trial.metrics.remove(missing);
        }
        runs.push(run.clone());
        for trial in &mut run.trials {
            trial.metrics.insert(missing.to_owned(), f64::NAN);
        }
        runs.push(run);
    }
    for missing in ["l0", "true_l0", "recovered_share", "mmcs"] {
        let mut run = samples::toy_run();
        for trial in &mut run.trials {
            trial.metrics.remove(missing);
        }
        runs.push(run);
    }
    let mut dead = samples::grid_run();
    for trial in &mut dead.trials {
        trial.metrics.insert("l0".to_owned(), 0.0);
    }
    runs.push(dead);
    let mut equal = samples::grid_run();
    let first = equal.trials[0].metrics.clone();
    for trial in &mut equal.trials {
        trial.metrics = first.clone();
    }
    runs.push(equal);
    let mut unknown = samples::grid_run();
    unknown.objective.metric = "own_metric".to_owned();
    runs.push(unknown);
    for (i, run) in runs.iter().enumerate() {
        let report = report(run, &Tables::of(run), None).unwrap();
        for (name, _) in &report.figures {
            assert!(report.markdown.contains(&format!("(figures/{name})")), "{i}: {name}");
        }
        assert_eq!(report.markdown.matches("](figures/").count(), report.figures.len(), "{i}");
        assert!(!report.markdown.contains("NaN ±") && !report.markdown.contains("| NaN"), "{i}");
        assert!(!report.markdown.contains("none"), "{i}: {}", report.markdown);
    }
}

#[test]
fn a_large_run_has_a_bounded_report() {
    let run = samples::random_run(1200);
    let report = report(&run, &Tables::of(&run), None).unwrap();
    assert!(report.markdown.len() < 40_000, "{}", report.markdown.len());
    for (name, svg) in &report.figures {
        assert!(svg.len() < 1_500_000, "{name}: {}", svg.len());
    }
}

#[test]
fn the_same_run_gives_the_same_report() {
    let run = samples::random_run(30);
    let tables = Tables::of(&run);
    assert_eq!(report(&run, &tables, None).unwrap(), report(&run, &tables, None).unwrap());
}
