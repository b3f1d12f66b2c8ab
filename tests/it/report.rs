//! Tables and report together, from the outside: what a run folder holds in the end.

use saesweep::{
    metric::Goal,
    report::report,
    table::{
        CurvePoint, HostInfo, Objective, Outcome, RunData, StoreLine, Tables, TrialRow, best_trials,
        write_tables,
    },
    trial::TrialId,
};

#[path = "../../src/table/samples.rs"]
mod samples;

#[test]
fn a_report_is_rebuilt_from_the_same_data_byte_for_byte() {
    let run = samples::repeats_run();
    let dir = tempfile::tempdir().unwrap();
    let tables = write_tables(&run, dir.path()).unwrap();
    assert_eq!(tables, Tables::of(&run));
    assert_eq!(report(&run, &tables, None).unwrap(), report(&run, &Tables::of(&run), None).unwrap());
}

#[test]
fn figures_are_whole_and_their_text_is_text() {
    for (run, first) in
        [(samples::random_run(50), "frontier-ce_loss_score.svg"), (samples::toy_run(), "recovery.svg")]
    {
        let report = report(&run, &Tables::of(&run), None).unwrap();
        let names: Vec<&str> = report.figures.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [first, "frontier-explained_variance.svg", "effects.svg", "curves.svg", "density.svg"]
        );
        for (name, svg) in &report.figures {
            assert!(svg.starts_with("<svg width=\"820\"") && svg.ends_with("</svg>\n"), "{name}");
            assert!(svg.contains("<title>") && svg.contains("<text "), "{name}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
            assert!(report.markdown.contains(&format!("](figures/{name})")), "{name}");
        }
    }
}

#[test]
fn every_trial_is_in_the_csv_and_the_best_is_in_the_report() {
    let run = samples::grid_run();
    let dir = tempfile::tempdir().unwrap();
    let tables = write_tables(&run, dir.path()).unwrap();
    let csv = std::fs::read_to_string(dir.path().join("trials.csv")).unwrap();
    for trial in &run.trials {
        let line = csv.lines().find(|line| line.starts_with(&trial.id.0)).unwrap();
        assert!(line.contains(trial.outcome.as_str()));
    }
    let best = best_trials(&run)[0];
    let markdown = report(&run, &tables, None).unwrap().markdown;
    assert!(markdown.contains(&format!("trial `{}`", best.id)));
    assert!(markdown.contains(best.snippet.trim_end()));
}
