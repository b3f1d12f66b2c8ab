//! SIGKILL at many points: whatever was interrupted where, the same command leaves the same bytes as a run that
//! nothing disturbed.
//!
//! The program has fault points between the steps of every lasting write (`failpoint.rs`). A process dies at its
//! nth one, by its own SIGKILL, for every n in a stride, until a run has fewer than n.
//! `SAESWEEP_KILL_STRIDE=1` takes every point.

use super::tiny_sweep::{TinySweep, assert_same, expect};
use std::{collections::BTreeMap, fs, os::unix::process::ExitStatusExt, path::Path};

type Lasting = BTreeMap<String, Vec<u8>>;

fn stride(default: usize) -> usize {
    std::env::var("SAESWEEP_KILL_STRIDE")
        .ok()
        .and_then(|stride| stride.parse().ok())
        .unwrap_or(default)
        .max(1)
}

/// What the sweep leaves when nothing disturbs it, and the cache with its store.
fn undisturbed() -> (TinySweep, Lasting) {
    let sweep = TinySweep::new();
    sweep.expect(&["run", "sweep.toml"], 0);
    let lasting = sweep.lasting();
    (sweep, lasting)
}

/// A run whose `role` dies at its `n`th fault point; the point's name, or `None` when there are fewer.
fn run_killed(sweep: &TinySweep, role: &str, n: usize, cache: &Path) -> Option<String> {
    let marker = sweep.path("killed-at");
    let output = sweep
        .command_with_cache(&["run", "sweep.toml"], cache)
        .env("SAESWEEP_TEST_KILL_AT", format!("{role}:{n}:{}", marker.display()))
        .output()
        .unwrap();
    let point = fs::read_to_string(&marker).ok();
    match (role, &point) {
        ("coordinator", Some(point)) => assert_eq!(output.status.signal(), Some(9), "{role} {n}, {point}"),
        // A trial that dies is started again, and the run goes on; without a point nobody dies.
        _ => drop(expect(&output, 0)),
    }
    point
}

#[test]
fn a_coordinator_killed_anywhere_loses_nothing() {
    let (_, expected) = undisturbed();
    let mut points: BTreeMap<String, usize> = BTreeMap::new();
    for n in (1..).step_by(stride(2)) {
        let sweep = TinySweep::new();
        let cache = sweep.path("cache");
        let Some(point) = run_killed(&sweep, "coordinator", n, &cache) else { break };
        sweep.expect(&["run", "sweep.toml"], 0);
        assert_same(&sweep.lasting(), &expected, &format!("after a kill at {n}, {point}"));
        *points.entry(point).or_default() += 1;
    }
    println!("coordinator: {} kill points: {points:#?}", points.values().sum::<usize>());
    assert!(points.values().sum::<usize>() >= 20 && points.len() >= 8, "{points:?}");
}

#[test]
fn a_trial_killed_anywhere_loses_nothing() {
    let (first, expected) = undisturbed();
    let mut points: BTreeMap<String, usize> = BTreeMap::new();
    for n in (1..).step_by(stride(1)) {
        let sweep = TinySweep::new();
        let Some(point) = run_killed(&sweep, "trial", n, &first.path("cache")) else { break };
        assert_same(&sweep.lasting(), &expected, &format!("after a kill at {n}, {point}"));
        *points.entry(point).or_default() += 1;
    }
    println!("trial: {} kill points: {points:#?}", points.values().sum::<usize>());
    assert!(points.values().sum::<usize>() >= 15 && points.len() >= 6, "{points:?}");
}

#[test]
fn kills_upon_kills_lose_nothing() {
    let (_, expected) = undisturbed();
    let sweep = TinySweep::new();
    let marker = sweep.path("killed-at");
    let mut kills = 0;
    // Each run comes a little further than the one before, and then dies again.
    for n in (5..).step_by(9) {
        run_killed(&sweep, "coordinator", n, &sweep.path("cache"));
        match fs::remove_file(&marker) {
            Ok(()) => kills += 1,
            Err(_) => break,
        }
    }
    println!("one run folder survived {kills} kills");
    assert!(kills >= 5, "{kills}");
    assert_same(&sweep.lasting(), &expected, &format!("after {kills} kills"));
}

/// Waits for a file that has something in it.
fn wait_for(path: &Path) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while fs::metadata(path).map_or(0, |metadata| metadata.len()) == 0 {
        assert!(std::time::Instant::now() < deadline, "{} does not come", path.display());
        std::thread::yield_now();
    }
}

#[test]
fn trials_die_with_a_coordinator_that_is_killed_from_outside() {
    let sweep = TinySweep::new();
    // Long enough to be at work when it is killed, however fast the machine.
    sweep.edit("tokens = 1280", "tokens = 100_000_000");
    sweep.edit("[0.5, 2.0, 8.0]", "[0.5, 2.0]");
    let mut child = sweep.command(&["run", "sweep.toml", "-q"]).spawn().unwrap();
    wait_for(&sweep.run_dir().join("events.jsonl"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let trials = loop {
        let at_work = |(_, folder): &(String, std::path::PathBuf)| folder.join("metrics.jsonl").exists();
        let trials: Vec<_> = if sweep.run_dir().join("trials").exists() {
            sweep.trials().into_iter().filter(at_work).collect()
        } else {
            Vec::new()
        };
        if trials.len() == 2 {
            break trials;
        }
        assert!(std::time::Instant::now() < deadline, "the trials do not start");
        std::thread::yield_now();
    };
    child.kill().unwrap();
    child.wait().unwrap();
    for (_, folder) in trials {
        // Held by the trial's process; this returns when it is gone.
        fs::File::open(folder.join("lock")).unwrap().lock().unwrap();
        assert!(!folder.join("result.json").exists());
    }
    let (stdout, _) = sweep.expect(&["status", "tiny"], 0);
    assert!(stdout.contains("broken off"), "{stdout}");
}
