//! What the scheduler needs of a run: how trials are started, the journal, the onlooker.

use super::{
    CliError,
    facts::RunFacts,
    outputs::write_outputs,
    prepare::remove_spent_checkpoint,
    progress::SweepProgress,
    run_data::{read_state, run_data},
};
use crate::{
    event::Event,
    rundir::{Journal, RunDir, RunDirError, read_result},
    sched::{Host, RunEvent, TrialCommand, Verdict},
    slot::Slot,
    trial::TrialId,
};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The run folder, the journal and the progress of one run.
#[derive(Debug)]
pub(super) struct RunHost {
    pub(super) run: RunDir,
    pub(super) facts: RunFacts,
    pub(super) journal: Journal,
    pub(super) progress: SweepProgress,
    pub(super) console: super::console::Console,
    pub(super) stores: PathBuf,
    /// Folder or file of the model of each trial that has one.
    pub(super) models: BTreeMap<TrialId, PathBuf>,
    /// Folder of the SAE that a trial starts from.
    pub(super) starts: BTreeMap<TrialId, PathBuf>,
    pub(super) report: LiveReport,
}

/// When the report is rebuilt while trials still run.
#[derive(Debug, Default)]
pub(super) struct LiveReport {
    last: Option<(Instant, Duration)>,
    is_stale: bool,
}

/// The report is rebuilt only after this many times the time that the last rebuild took, so that its cost
/// stays small however many trials there are.
const REBUILD_PAUSE: u32 = 50;

impl RunHost {
    /// Writes tables and report as they stand.
    pub(super) fn write_outputs(&mut self) -> Result<(), CliError> {
        let start = Instant::now();
        let data = run_data(&self.run, &self.facts, &read_state(&self.run)?, true)?;
        write_outputs(&self.run, &data, self.facts.template.as_deref())?;
        self.report = LiveReport { last: Some((Instant::now(), start.elapsed())), is_stale: false };
        Ok(())
    }

    fn refresh_report(&mut self) {
        let is_due =
            self.report.last.is_none_or(|(at, took)| at.elapsed() >= took.saturating_mul(REBUILD_PAUSE));
        if self.report.is_stale && is_due {
            // The report can be rebuilt at any time; trials go on without it.
            if let Err(error) = self.write_outputs() {
                tracing::warn!("the report could not be updated: {error}");
                self.report =
                    LiveReport { last: Some((Instant::now(), Duration::from_secs(1))), is_stale: false };
            }
        }
    }
}

/// The time for the journal.
pub(super) fn unix_secs() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The program that trials run: this one, even if its file is replaced or removed while the sweep runs, so
/// that all trials of a run are done by the same code.
fn this_program() -> PathBuf {
    if cfg!(target_os = "linux") {
        return PathBuf::from("/proc/self/exe");
    }
    std::env::current_exe().unwrap_or_else(|_unknown| PathBuf::from("saesweep"))
}

impl Host for RunHost {
    fn command(&mut self, id: &TrialId, slot: &Slot, _attempt: u32) -> TrialCommand {
        let trial = self.run.trial(id);
        let mut args: Vec<OsString> = vec![
            "trial".into(),
            trial.root().into(),
            "--slot".into(),
            slot.id.to_string().into(),
            "--threads".into(),
            slot.threads.to_string().into(),
            "--stores".into(),
            self.stores.clone().into(),
        ];
        if let Some(model) = self.models.get(id) {
            args.extend(["--model".into(), model.into()]);
        }
        if let Some(start) = self.starts.get(id) {
            args.extend(["--init".into(), start.into()]);
        }
        TrialCommand {
            program: this_program(),
            name: Some("saesweep".into()),
            args,
            env: vec![(super::trial::COORDINATOR.to_owned(), std::process::id().to_string())],
            log: trial.log(),
        }
    }

    fn verdict(&mut self, id: &TrialId) -> Option<Verdict> {
        let dir = self.run.trial(id);
        let result = match read_result(&dir) {
            Ok(result) => result?,
            Err(error) => {
                tracing::warn!("trial {id}: {error}");
                return None;
            }
        };
        // It may have died between its result and this.
        if let Err(error) = remove_spent_checkpoint(&dir, result.status) {
            tracing::warn!("trial {id}: {error}");
        }
        Some(Verdict { status: result.status, reason: result.reason })
    }

    fn record(&mut self, event: &Event) -> Result<(), RunDirError> {
        self.journal.append(unix_secs(), event)?;
        let result = match event {
            Event::TrialEnded { id, .. } => {
                self.report.is_stale = true;
                read_result(&self.run.trial(id)).ok().flatten()
            }
            _ => None,
        };
        self.progress.event(event, result.as_ref(), Instant::now());
        Ok(())
    }

    fn observe(&mut self, event: RunEvent<'_>) {
        match event {
            RunEvent::Message { id, message } => self.progress.message(id, message, Instant::now()),
            RunEvent::Stopping => {
                self.console.note("stopping: running trials write their checkpoints; once more to kill them");
            }
            RunEvent::Killing => self.console.note("killing what still runs"),
            RunEvent::Tick => {
                self.refresh_report();
                self.progress.tick(Instant::now());
            }
        }
    }
}
