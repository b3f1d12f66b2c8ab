//! The scheduler as a pure state machine: inputs in, actions out. No clock, no processes, no files.
//!
//! What it keeps, whatever the order of inputs: a slot runs one trial at a time; every trial that was started
//! ends with exactly one final record; a trial dies at most `retries + 1` times; after [`Action::Finish`]
//! there is nothing more.

use crate::{
    event::Event,
    slot::Slot,
    trial::{OnFailure, TrialId, TrialStatus},
};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The run begins. The first input, once.
    Begin,
    /// A trial's process has ended (or could not be started).
    Exited {
        /// Which trial.
        id: TrialId,
        /// The verdict it left behind, if it left one.
        verdict: Option<Verdict>,
        /// How the process ended.
        exit: Exit,
    },
    /// The user wants to stop: the first time in order, the second time at once.
    Interrupt,
    /// Time has passed.
    Tick,
}

/// What must be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Start a process for a trial.
    Start {
        /// Which trial.
        id: TrialId,
        /// On which slot.
        slot: Slot,
        /// 1 for its first start in this run.
        attempt: u32,
    },
    /// Ask a trial to write its checkpoint and stop.
    Terminate {
        /// Which trial.
        id: TrialId,
    },
    /// End a trial's processes at once.
    Kill {
        /// Which trial.
        id: TrialId,
    },
    /// Write to the journal.
    Record(Event),
    /// The run is over; no process is left.
    Finish(FinishReason),
}

/// A trial's verdict on itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// How it ended.
    pub status: TrialStatus,
    /// Why, when not done.
    pub reason: Option<String>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With an exit code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It was never started.
    NotStarted(String),
}

/// The exit code with which a trial says: stopped on request, with a checkpoint. BSD's `EX_TEMPFAIL`.
pub const EXIT_STOPPED: i32 = 75;

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(EXIT_STOPPED) => f.write_str("stopped with a checkpoint"),
            Self::Code(code) => write!(f, "ended with exit code {code} and no result"),
            Self::Signal(9) => f.write_str("killed by signal 9 (SIGKILL; out of memory?)"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::NotStarted(why) => write!(f, "could not be started: {why}"),
        }
    }
}

/// Why the run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// Every trial has its verdict.
    Complete,
    /// A trial failed and `run.on_failure` is `stop`; trials remain.
    StoppedOnFailure,
    /// The user stopped it; trials remain.
    Interrupted,
}

/// How deaths and stops are dealt with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// How often a trial that died without a verdict is started again.
    pub retries: u32,
    /// What a failed trial means for the rest.
    pub on_failure: OnFailure,
    /// Seconds between asking trials to stop and killing them.
    pub grace_secs: f64,
}

/// The scheduler's state.
#[derive(Debug)]
pub struct Core {
    policy: Policy,
    slots: Vec<(Slot, Option<TrialId>)>,
    waiting: VecDeque<TrialId>,
    trials: BTreeMap<TrialId, Trial>,
    mode: Mode,
}

#[derive(Debug, Default)]
struct Trial {
    starts: u32,
    deaths: u32,
    first_start: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// `Begin` has not come yet.
    Idle,
    /// Free slots get trials.
    Running,
    /// A failure ended the supply; running trials end by themselves.
    Draining,
    /// Running trials were asked to stop; killed at this time.
    Stopping {
        kill_at: f64,
    },
    /// Running trials were killed.
    Killing,
    Finished,
}

impl Core {
    /// A scheduler that runs `trials` in that order on `slots`.
    pub fn new(policy: Policy, slots: Vec<Slot>, trials: Vec<TrialId>) -> Self {
        Self {
            policy,
            slots: slots.into_iter().map(|slot| (slot, None)).collect(),
            trials: trials.iter().map(|id| (id.clone(), Trial::default())).collect(),
            waiting: trials.into(),
            mode: Mode::Idle,
        }
    }

    /// Trials that neither run nor have ended.
    pub fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Trials that run now.
    pub fn n_running(&self) -> usize {
        self.slots.iter().filter(|(_, trial)| trial.is_some()).count()
    }

    /// Takes one input at time `now` (in seconds, from any origin) and says what must be done.
    pub fn handle(&mut self, input: Input, now: f64) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Begin if self.mode == Mode::Idle => self.mode = Mode::Running,
            Input::Begin => {}
            Input::Exited { id, verdict, exit } => self.exited(&id, verdict, &exit, now, &mut actions),
            Input::Interrupt => self.interrupt(now, &mut actions),
            Input::Tick => {
                if let Mode::Stopping { kill_at } = self.mode
                    && now >= kill_at
                {
                    self.kill_all(&mut actions);
                }
            }
        }
        self.fill_slots(now, &mut actions);
        self.finish_if_over(&mut actions);
        actions
    }

    fn interrupt(&mut self, now: f64, actions: &mut Vec<Action>) {
        match self.mode {
            Mode::Idle | Mode::Running | Mode::Draining => {
                self.mode = Mode::Stopping { kill_at: now + self.policy.grace_secs };
                actions.extend(self.running().map(|id| Action::Terminate { id }));
            }
            Mode::Stopping { .. } => self.kill_all(actions),
            Mode::Killing | Mode::Finished => {}
        }
    }

    fn kill_all(&mut self, actions: &mut Vec<Action>) {
        self.mode = Mode::Killing;
        actions.extend(self.running().map(|id| Action::Kill { id }));
    }

    fn running(&self) -> impl Iterator<Item = TrialId> {
        self.slots.iter().filter_map(|(_, trial)| trial.clone())
    }

    fn exited(
        &mut self,
        id: &TrialId,
        verdict: Option<Verdict>,
        exit: &Exit,
        now: f64,
        actions: &mut Vec<Action>,
    ) {
        let Some(slot) = self.slots.iter_mut().find(|(_, trial)| trial.as_ref() == Some(id)) else {
            // Told twice, or of a trial that was never started.
            return;
        };
        slot.1 = None;
        let trial = self.trials.get_mut(id).expect("invariant: only known trials run");
        let secs = trial.first_start.map_or(0.0, |start| now - start);
        let verdict = match verdict {
            Some(verdict) => verdict,
            None => {
                let asked_to_stop = matches!(self.mode, Mode::Stopping { .. } | Mode::Killing);
                if !asked_to_stop {
                    trial.deaths += 1;
                }
                if asked_to_stop || trial.deaths <= self.policy.retries {
                    actions.push(Action::Record(Event::TrialInterrupted {
                        id: id.clone(),
                        reason: exit.to_string(),
                        counts: !asked_to_stop,
                    }));
                    // At the end of the queue, so that a trial that takes the machine down with it comes last.
                    self.waiting.push_back(id.clone());
                    return;
                }
                let reason = match trial.deaths {
                    1 => exit.to_string(),
                    n => format!("died {n} times without a result; last: {exit}"),
                };
                Verdict { status: TrialStatus::Failed, reason: Some(reason) }
            }
        };
        let failed = verdict.status == TrialStatus::Failed;
        actions.push(Action::Record(Event::TrialEnded {
            id: id.clone(),
            status: verdict.status,
            reason: verdict.reason,
            secs,
        }));
        if failed && self.policy.on_failure == OnFailure::Stop && self.mode == Mode::Running {
            self.mode = Mode::Draining;
        }
    }

    fn fill_slots(&mut self, now: f64, actions: &mut Vec<Action>) {
        if self.mode != Mode::Running {
            return;
        }
        for (slot, occupant) in self.slots.iter_mut().filter(|(_, occupant)| occupant.is_none()) {
            let Some(id) = self.waiting.pop_front() else { return };
            let trial = self.trials.get_mut(&id).expect("invariant: only known trials wait");
            trial.starts += 1;
            trial.first_start.get_or_insert(now);
            *occupant = Some(id.clone());
            let attempt = trial.starts;
            // The record comes first: a process without a record could run unseen after a crash.
            actions.push(Action::Record(Event::TrialStarted {
                id: id.clone(),
                slot: slot.id.clone(),
                attempt,
            }));
            actions.push(Action::Start { id, slot: slot.clone(), attempt });
        }
    }

    fn finish_if_over(&mut self, actions: &mut Vec<Action>) {
        if self.n_running() > 0 {
            return;
        }
        let reason = match self.mode {
            Mode::Idle | Mode::Finished => return,
            // Also when it was told to stop, but everything had ended by itself.
            _ if self.waiting.is_empty() => FinishReason::Complete,
            Mode::Running => return,
            Mode::Draining => FinishReason::StoppedOnFailure,
            Mode::Stopping { .. } | Mode::Killing => FinishReason::Interrupted,
        };
        self.mode = Mode::Finished;
        actions.push(Action::Record(Event::RunEnded { complete: reason == FinishReason::Complete }));
        actions.push(Action::Finish(reason));
    }
}

#[cfg(test)]
mod tests;
