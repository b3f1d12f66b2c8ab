//! Before trials are scheduled: which of them still have to run, and their folders made ready.

use super::CliError;
use crate::{
    event::Event,
    rundir::{
        RunDir, RunDirError, RunState, TrialDir, TrialPhase, read_job, read_result, remove_if_present,
        write_atomic,
    },
    sae,
    spec::PlannedTrial,
    train,
    trial::{RunConfig, TrialId, TrialJob, TrialResult, TrialStatus},
};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of a planned trial in this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has its verdict and keeps it.
    Keep(TrialStatus),
    /// It runs, from its checkpoint if it has one.
    Run,
    /// It runs again although it had failed or diverged: that was asked for.
    Retry,
    /// Whatever it left is of no use; it runs from the start.
    Anew(&'static str),
}

/// Decides from what a trial left behind. Pure.
///
/// `old_job` and `result` are the trial's files, an error where one is there but cannot be read.
fn decide(
    job: &TrialJob,
    old_job: &Result<Option<TrialJob>, RunDirError>,
    result: &Result<Option<TrialResult>, RunDirError>,
    phase: Option<&TrialPhase>,
    retry_failed: bool,
) -> Fate {
    let (Ok(old_job), Ok(result)) = (old_job, result) else {
        return Fate::Anew("its files cannot be read");
    };
    let old_key =
        result.as_ref().map(|result| &result.store_key).or(old_job.as_ref().map(|old| &old.store_key));
    if old_key.is_some_and(|key| *key != job.store_key) {
        return Fate::Anew("its activation store is another one now");
    }
    let old_init = match (result, old_job) {
        (Some(result), _) => Some(&result.init_blake3),
        (None, old_job) => old_job.as_ref().map(|old| &old.init_blake3),
    };
    if old_init.is_some_and(|init| *init != job.init_blake3) {
        return Fate::Anew("the weights it starts from are others now");
    }
    let status = match (result, phase) {
        (Some(result), _) => result.status,
        // It died too often to leave a result of its own.
        (None, Some(TrialPhase::Ended { status: TrialStatus::Failed, .. })) => TrialStatus::Failed,
        (None, _) => return Fate::Run,
    };
    if retry_failed && status != TrialStatus::Done { Fate::Retry } else { Fate::Keep(status) }
}

/// The trials of this run, their folders ready.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// Trials to run, in plan order.
    pub(super) to_run: Vec<TrialId>,
    /// How many of them continue from a checkpoint.
    pub(super) n_continued: usize,
    /// Trials that keep their verdict.
    pub(super) kept: BTreeMap<TrialId, TrialStatus>,
    /// Trials that run although they had a verdict, and why.
    pub(super) anew: Vec<(TrialId, &'static str)>,
    /// Trials in the run folder that the plan does not want any more.
    pub(super) left_plan: Vec<TrialId>,
    /// Verdicts that the journal lacks: a coordinator died before it could record them.
    pub(super) unrecorded: Vec<Event>,
}

/// Decides on every trial and makes the folders of those that run ready. A kill at any moment of this leaves
/// folders that lead to the same decisions. `keys` are those of the trials' stores, `init_blake3` the hashes of
/// weights by `sae.init_from`.
pub(super) fn prepare(
    run: &RunDir,
    trials: &[PlannedTrial],
    keys: &BTreeMap<TrialId, String>,
    init_blake3: &BTreeMap<String, String>,
    config: &RunConfig,
    state: &RunState,
    retry_failed: bool,
) -> Result<Prepared, CliError> {
    let mut prepared = Prepared::default();
    for trial in trials {
        let dir = run.trial(&trial.id);
        let job = TrialJob {
            id: trial.id.clone(),
            store_key: keys[&trial.id].clone(),
            init_blake3: init_blake3.get(&trial.config.sae.init_from).cloned(),
            run: config.clone(),
            config: trial.config.clone(),
        };
        let (old_job, result) = (read_job(&dir), read_result(&dir));
        let phase = state.trials.get(&trial.id).map(|trial| &trial.phase);
        let fate = decide(&job, &old_job, &result, phase, retry_failed);
        match &fate {
            Fate::Keep(status) => {
                prepared.kept.insert(trial.id.clone(), *status);
                if let Ok(Some(result)) = &result {
                    prepared.unrecorded.extend(unrecorded(result, phase));
                    remove_spent_checkpoint(&dir, result.status)?;
                }
                continue;
            }
            Fate::Run => {}
            Fate::Retry => remove_if_present(&dir.result())?,
            Fate::Anew(why) => {
                prepared.anew.push((trial.id.clone(), why));
                clear(&dir)?;
            }
        }
        // Last, so that a half-cleared folder is seen as one with the wrong store again.
        write_job(&dir, &job)?;
        prepared.n_continued += usize::from(dir.checkpoint().exists());
        prepared.to_run.push(trial.id.clone());
    }
    let planned: BTreeSet<&TrialId> = trials.iter().map(|trial| &trial.id).collect();
    prepared.left_plan = state.trials.keys().filter(|id| !planned.contains(id)).cloned().collect();
    Ok(prepared)
}

/// The event that a coordinator could not record, if there is one.
fn unrecorded(result: &TrialResult, phase: Option<&TrialPhase>) -> Option<Event> {
    if matches!(phase, Some(TrialPhase::Ended { status, .. }) if *status == result.status) {
        return None;
    }
    Some(Event::TrialEnded {
        id: result.id.clone(),
        status: result.status,
        reason: result.reason.clone(),
        secs: result.timing.train_secs + result.timing.eval_secs,
    })
}

/// Removes everything a trial made but its log.
fn clear(dir: &TrialDir) -> Result<(), RunDirError> {
    remove_if_present(&dir.result())?;
    remove_checkpoint(dir)?;
    remove_if_present(&dir.metrics())?;
    sae::folder::remove_all(&dir.sae()).map_err(RunDirError::io("remove", &dir.sae()))
}

/// Removes the checkpoint of a trial with that verdict, which is of no use any more. A trial that failed may be
/// tried again from it.
pub(super) fn remove_spent_checkpoint(dir: &TrialDir, status: TrialStatus) -> Result<(), RunDirError> {
    if status == TrialStatus::Failed { Ok(()) } else { remove_checkpoint(dir) }
}

fn remove_checkpoint(dir: &TrialDir) -> Result<(), RunDirError> {
    train::remove_checkpoint(dir.root()).map_err(RunDirError::io("remove", &dir.checkpoint()))
}

fn write_job(dir: &TrialDir, job: &TrialJob) -> Result<(), RunDirError> {
    let text = toml::to_string(job).map_err(|error| RunDirError::Malformed {
        path: dir.config(),
        what: "trial configuration",
        detail: error.to_string(),
    })?;
    write_atomic(&dir.config(), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> TrialJob {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rundir/trial-v1");
        read_job(&TrialDir::new(fixtures)).unwrap().unwrap()
    }

    fn result(status: TrialStatus) -> TrialResult {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rundir/trial-v1");
        TrialResult { status, ..read_result(&TrialDir::new(fixtures)).unwrap().unwrap() }
    }

    fn ended(status: TrialStatus) -> TrialPhase {
        TrialPhase::Ended { status, reason: None, secs: 1.0 }
    }

    #[test]
    fn nothing_finished_runs_twice_unless_asked() {
        use TrialStatus::{Diverged, Done, Failed};
        let check = |left: Option<TrialStatus>, phase: Option<TrialPhase>, retry: bool, expected: Fate| {
            let (old_job, result) = (Ok(Some(job())), Ok(left.map(result)));
            assert_eq!(
                decide(&job(), &old_job, &result, phase.as_ref(), retry),
                expected,
                "{left:?} {phase:?}"
            );
        };
        for retry in [false, true] {
            check(None, None, retry, Fate::Run);
            check(None, Some(TrialPhase::Interrupted { reason: String::new() }), retry, Fate::Run);
            // Its result was removed by hand.
            check(None, Some(ended(Done)), retry, Fate::Run);
            check(Some(Done), None, retry, Fate::Keep(Done));
        }
        check(Some(Diverged), Some(ended(Diverged)), false, Fate::Keep(Diverged));
        check(Some(Failed), Some(ended(Failed)), false, Fate::Keep(Failed));
        check(None, Some(ended(Failed)), false, Fate::Keep(Failed));
        check(Some(Diverged), Some(ended(Diverged)), true, Fate::Retry);
        check(None, Some(ended(Failed)), true, Fate::Retry);
    }

    #[test]
    fn another_store_makes_everything_stale() {
        let new = TrialJob { store_key: "fedcba9876543210".to_owned(), ..job() };
        let decide = |old: Result<Option<TrialJob>, RunDirError>, result| {
            matches!(decide(&new, &old, &Ok(result), None, false), Fate::Anew(_))
        };
        assert!(decide(Ok(Some(job())), Some(result(TrialStatus::Done))));
        assert!(decide(Ok(Some(job())), None));
        assert!(decide(Ok(Some(new.clone())), Some(result(TrialStatus::Done))));
        assert!(!decide(Ok(None), None));
    }

    #[test]
    fn other_weights_to_start_from_make_everything_stale() {
        let job = |hash: Option<&str>| TrialJob { init_blake3: hash.map(str::to_owned), ..job() };
        let result = |hash: Option<&str>| TrialResult {
            init_blake3: hash.map(str::to_owned),
            ..result(TrialStatus::Done)
        };
        let decide = |new, old, left| decide(&job(new), &Ok(Some(job(old))), &Ok(left), None, false);
        assert_eq!(decide(Some("a"), Some("a"), Some(result(Some("a")))), Fate::Keep(TrialStatus::Done));
        assert!(matches!(decide(Some("b"), Some("b"), Some(result(Some("a")))), Fate::Anew(_)));
        assert!(matches!(decide(Some("b"), Some("a"), None), Fate::Anew(_)));
        assert_eq!(decide(Some("a"), Some("a"), None), Fate::Run);
    }

    #[test]
    fn unreadable_files_are_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let trial = TrialDir::new(dir.path());
        std::fs::write(trial.config(), "id = ").unwrap();
        let fate = decide(&job(), &read_job(&trial), &Ok(None), None, false);
        assert!(matches!(fate, Fate::Anew(_)));
    }
}
