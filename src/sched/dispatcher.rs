//! The loop between the pure core and the world. It holds no decision of its own: reports, interrupts and the
//! clock become inputs of the core, and the core's actions are carried out in order.

use super::{
    core::{Action, Core, FinishReason, Input, Verdict},
    executor::{Processes, Report, TrialCommand},
};
use crate::{
    event::{Event, TrialMessage},
    rundir::RunDirError,
    slot::Slot,
    trial::TrialId,
};
use std::time::{Duration, Instant};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::MissedTickBehavior,
};

/// What the run needs from outside.
pub trait Host {
    /// How a trial is started.
    fn command(&mut self, id: &TrialId, slot: &Slot, attempt: u32) -> TrialCommand;
    /// The verdict in a trial's folder after its process has ended.
    fn verdict(&mut self, id: &TrialId) -> Option<Verdict>;
    /// Writes an event to the journal; when this returns, it has happened.
    ///
    /// # Errors
    /// It could not be written. The run then ends.
    fn record(&mut self, event: &Event) -> Result<(), RunDirError>;
    /// Looks on.
    fn observe(&mut self, event: RunEvent<'_>);
}

/// What an onlooker sees besides the journal's events.
#[derive(Debug)]
pub enum RunEvent<'a> {
    /// A trial said something.
    Message {
        /// Which trial.
        id: &'a TrialId,
        /// What.
        message: &'a TrialMessage,
    },
    /// Running trials were asked to stop.
    Stopping,
    /// Running trials were killed.
    Killing,
    /// Some time has passed.
    Tick,
}

/// A run that broke down; its trials were killed and continue from their checkpoints next time.
#[derive(Debug, thiserror::Error)]
pub enum SchedError {
    /// The journal could not be written.
    #[error(transparent)]
    Record(#[from] RunDirError),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

/// The user's requests to stop.
#[derive(Debug)]
pub struct Interrupts {
    receiver: mpsc::UnboundedReceiver<()>,
}

impl Interrupts {
    /// Requests sent by hand.
    pub fn by_hand() -> (mpsc::UnboundedSender<()>, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, Self { receiver })
    }

    /// Requests by Ctrl-C, SIGTERM or a closed terminal, except those that whoever started us has us ignore, as
    /// `nohup` does. Needs a tokio runtime.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn by_signals() -> Result<Self, SchedError> {
        let (sender, interrupts) = Self::by_hand();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            if is_ignored(kind) {
                continue;
            }
            let mut stream = signal(kind).map_err(SchedError::Signals)?;
            let sender = sender.clone();
            tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(()).is_ok() {} });
        }
        Ok(interrupts)
    }

    /// Waits for the next request; for ever if none can come any more.
    pub async fn next(&mut self) {
        if self.receiver.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Whether a signal was ignored when this process began. Known on Linux only.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

/// Time between two looks at the clock.
const TICK: Duration = Duration::from_millis(200);

/// Runs the core's trials to the end and says why it is over.
///
/// Must be awaited on the thread that lives as long as the coordinator: trials die with the thread that
/// started them.
///
/// # Errors
/// An event could not be recorded. All trials are dead then.
pub async fn run(
    mut core: Core,
    host: &mut dyn Host,
    interrupts: &mut Interrupts,
) -> Result<FinishReason, SchedError> {
    let (mut processes, mut reports) = Processes::new();
    let start = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut input = Input::Begin;
    loop {
        let actions = core.handle(input, start.elapsed().as_secs_f64());
        match carry_out(actions, host, &mut processes) {
            Ok(Some(reason)) => return Ok(reason),
            Ok(None) => {}
            Err(error) => {
                end_all(&mut processes, &mut reports).await;
                return Err(error);
            }
        }
        input = loop {
            tokio::select! {
                biased;
                () = interrupts.next() => break Input::Interrupt,
                Some(report) = reports.recv() => match report {
                    Report::Message { id, message } => {
                        host.observe(RunEvent::Message { id: &id, message: &message });
                    }
                    Report::Exited { id, exit } => {
                        processes.forget(&id);
                        let verdict = host.verdict(&id);
                        break Input::Exited { id, verdict, exit };
                    }
                },
                _ = ticks.tick() => {
                    host.observe(RunEvent::Tick);
                    break Input::Tick;
                }
            }
        };
    }
}

fn carry_out(
    actions: Vec<Action>,
    host: &mut dyn Host,
    processes: &mut Processes,
) -> Result<Option<FinishReason>, SchedError> {
    let any = |wanted: fn(&Action) -> bool| actions.iter().any(wanted);
    if any(|action| matches!(action, Action::Terminate { .. })) {
        host.observe(RunEvent::Stopping);
    }
    if any(|action| matches!(action, Action::Kill { .. })) {
        host.observe(RunEvent::Killing);
    }
    for action in actions {
        match action {
            Action::Record(event) => host.record(&event)?,
            Action::Start { id, slot, attempt } => {
                let command = host.command(&id, &slot, attempt);
                processes.start(&id, &slot, attempt, &command);
            }
            Action::Terminate { id } => processes.terminate(&id),
            Action::Kill { id } => processes.kill(&id),
            Action::Finish(reason) => return Ok(Some(reason)),
        }
    }
    Ok(None)
}

async fn end_all(processes: &mut Processes, reports: &mut mpsc::Receiver<Report>) {
    processes.kill_all();
    while processes.any() {
        match reports.recv().await {
            Some(Report::Exited { id, .. }) => processes.forget(&id),
            Some(Report::Message { .. }) => {}
            None => return,
        }
    }
}
