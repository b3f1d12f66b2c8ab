//! The scheduler with real processes: shell scripts stand in for trials.

use saesweep::{
    event::{Event, TrialMessage},
    rundir::RunDirError,
    sched::{Core, FinishReason, Host, Interrupts, Policy, RunEvent, SchedError, TrialCommand, Verdict, run},
    slot::{DeviceKind, Slot, SlotId},
    trial::{OnFailure, TrialId, TrialStatus},
};
use std::{collections::BTreeMap, path::PathBuf};
use tokio::sync::mpsc::UnboundedSender;

/// A host whose trials are shell scripts in a temporary folder, run there. A trial's verdict is the file
/// `<id>.verdict`.
struct Scripts {
    dir: tempfile::TempDir,
    scripts: BTreeMap<TrialId, String>,
    events: Vec<Event>,
    messages: Vec<(TrialId, TrialMessage)>,
    interrupt: UnboundedSender<()>,
    interrupt_on_message: bool,
    fail_record_at: Option<usize>,
}

impl Host for Scripts {
    fn command(&mut self, id: &TrialId, _slot: &Slot, attempt: u32) -> TrialCommand {
        let script = format!("cd '{}'\n{}", self.dir.path().display(), self.scripts[id]);
        TrialCommand {
            program: PathBuf::from("/bin/sh"),
            name: None,
            args: vec!["-c".into(), script.into()],
            env: vec![("ID".to_owned(), id.0.clone()), ("ATTEMPT".to_owned(), attempt.to_string())],
            log: self.log(id),
        }
    }

    fn verdict(&mut self, id: &TrialId) -> Option<Verdict> {
        let done = self.dir.path().join(format!("{id}.verdict")).exists();
        done.then_some(Verdict { status: TrialStatus::Done, reason: None })
    }

    fn record(&mut self, event: &Event) -> Result<(), RunDirError> {
        if self.fail_record_at == Some(self.events.len()) {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(RunDirError::io("append to", self.dir.path())(full));
        }
        self.events.push(event.clone());
        Ok(())
    }

    fn observe(&mut self, event: RunEvent<'_>) {
        if let RunEvent::Message { id, message } = event {
            self.messages.push((id.clone(), message.clone()));
            if self.interrupt_on_message {
                self.interrupt.send(()).unwrap();
            }
        }
    }
}

impl Scripts {
    fn log(&self, id: &TrialId) -> PathBuf {
        self.dir.path().join(format!("{id}.log"))
    }

    fn log_text(&self, id: &str) -> String {
        std::fs::read_to_string(self.log(&TrialId(id.to_owned()))).unwrap()
    }

    /// The journal's trial events, one word each.
    fn story(&self) -> Vec<String> {
        self.events
            .iter()
            .map(|event| match event {
                Event::TrialStarted { id, attempt, .. } => format!("{id} started #{attempt}"),
                Event::TrialEnded { id, status, reason, .. } => {
                    format!("{id} {status:?} {}", reason.as_deref().unwrap_or("")).trim().to_owned()
                }
                Event::TrialInterrupted { id, reason, counts } => format!("{id} {reason} {counts}"),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

fn message(step: u64) -> String {
    let message = TrialMessage::Progress { step, loss: 0.5, l0: 10.0, tokens_per_sec: 1e3 };
    serde_json::to_string(&message).unwrap()
}

struct Setup {
    n_slots: usize,
    policy: Policy,
    interrupt_on_message: bool,
    fail_record_at: Option<usize>,
}

const SETUP: Setup = Setup {
    n_slots: 1,
    policy: Policy { retries: 1, on_failure: OnFailure::Continue, grace_secs: 60.0 },
    interrupt_on_message: false,
    fail_record_at: None,
};

fn run_scripts(scripts: &[(&str, &str)], setup: Setup) -> (Scripts, Result<FinishReason, SchedError>) {
    let (interrupt, mut interrupts) = Interrupts::by_hand();
    let ids: Vec<TrialId> = scripts.iter().map(|(id, _)| TrialId((*id).to_owned())).collect();
    let mut host = Scripts {
        dir: tempfile::tempdir().unwrap(),
        scripts: ids.iter().cloned().zip(scripts.iter().map(|(_, script)| (*script).to_owned())).collect(),
        events: Vec::new(),
        messages: Vec::new(),
        interrupt,
        interrupt_on_message: setup.interrupt_on_message,
        fail_record_at: setup.fail_record_at,
    };
    let slots = (0..setup.n_slots)
        .map(|index| Slot { id: SlotId { kind: DeviceKind::Cpu, index }, threads: 3 })
        .collect();
    let core = Core::new(setup.policy, slots, ids);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let finished = runtime.block_on(run(core, &mut host, &mut interrupts));
    (host, finished)
}

#[test]
fn messages_are_heard_and_the_rest_is_logged() {
    let script = format!(
        "echo 'hello'; echo '{}'; echo '{{\"message\":\"unknown\"}}'; echo \"$RAYON_NUM_THREADS threads\" >&2; \
         printf '{}'; touch $ID.verdict",
        message(1),
        message(2)
    );
    let (host, finished) = run_scripts(&[("a", &script)], SETUP);
    assert_eq!(finished.unwrap(), FinishReason::Complete);
    let steps: Vec<_> = host
        .messages
        .iter()
        .map(|(_, message)| if let TrialMessage::Progress { step, .. } = message { *step } else { 0 })
        .collect();
    assert_eq!(steps, [1, 2]);
    let log = host.log_text("a");
    for expected in ["--- trial a, start 1, on cpu:0 with 3 threads ---", "hello", "unknown", "3 threads"] {
        assert!(log.contains(expected), "{log}");
    }
    assert_eq!(host.story(), ["a started #1", "a Done", "RunEnded { complete: true }"]);
}

#[test]
fn deaths_are_told_apart_and_retried() {
    let (host, finished) = run_scripts(
        &[
            ("crash", "kill -9 $$"),
            ("exit", "exit 7"),
            ("heals", "[ $ATTEMPT = 2 ] && touch $ID.verdict; exit 1"),
        ],
        SETUP,
    );
    assert_eq!(finished.unwrap(), FinishReason::Complete);
    let story = host.story();
    for expected in [
        "crash Failed died 2 times without a result; last: killed by signal 9 (SIGKILL; out of memory?)",
        "exit Failed died 2 times without a result; last: ended with exit code 7 and no result",
        "heals ended with exit code 1 and no result true",
        "heals Done",
    ] {
        assert!(story.iter().any(|line| line == expected), "{story:#?}");
    }
}

#[test]
fn a_program_that_does_not_exist_costs_one_trial() {
    let (mut host, _) = run_scripts(&[], SETUP);
    struct Missing<'a>(&'a mut Scripts);
    impl Host for Missing<'_> {
        fn command(&mut self, id: &TrialId, _: &Slot, _: u32) -> TrialCommand {
            let log = self.0.log(id);
            TrialCommand {
                program: "/nonexistent/saesweep".into(),
                name: None,
                args: vec![],
                env: vec![],
                log,
            }
        }
        fn verdict(&mut self, id: &TrialId) -> Option<Verdict> {
            self.0.verdict(id)
        }
        fn record(&mut self, event: &Event) -> Result<(), RunDirError> {
            self.0.record(event)
        }
        fn observe(&mut self, _: RunEvent<'_>) {}
    }
    let slot = Slot { id: SlotId { kind: DeviceKind::Cpu, index: 0 }, threads: 1 };
    let core = Core::new(Policy { retries: 0, ..SETUP.policy }, vec![slot], vec![TrialId("a".to_owned())]);
    let (_sender, mut interrupts) = Interrupts::by_hand();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(core, &mut Missing(&mut host), &mut interrupts)).unwrap();
    let story = host.story().join("\n");
    assert!(story.contains("a Failed could not be started"), "{story}");
}

#[test]
fn a_flood_on_stdout_neither_fills_memory_nor_the_log() {
    let script = format!("yes nonsense | head -c 60000000; echo; echo '{}'; touch $ID.verdict", message(9));
    let (host, finished) = run_scripts(&[("a", &script)], SETUP);
    assert_eq!(finished.unwrap(), FinishReason::Complete);
    assert_eq!(host.messages.len(), 1);
    let log = host.log_text("a");
    assert!(log.len() < 9_000_000, "{} bytes", log.len());
    assert!(log.ends_with("--- further output on stdout is dropped ---\n"));
}

#[test]
fn one_interrupt_lets_trials_stop_in_order() {
    let script =
        format!("trap 'echo saved >&2; exit 75' TERM; echo '{}'; while :; do sleep 0.01; done", message(1));
    let (host, finished) =
        run_scripts(&[("a", &script), ("b", "exit 1")], Setup { interrupt_on_message: true, ..SETUP });
    assert_eq!(finished.unwrap(), FinishReason::Interrupted);
    assert_eq!(
        host.story(),
        ["a started #1", "a stopped with a checkpoint false", "RunEnded { complete: false }"]
    );
    assert!(host.log_text("a").contains("saved"));
}

#[test]
fn a_trial_that_ignores_sigterm_is_killed_after_the_grace_with_all_it_started() {
    // The subshell keeps stdout open: unless the whole group dies, the run would hear of no end.
    let script = format!("trap '' TERM; (sleep 600) & echo '{}'; while :; do sleep 600; done", message(1));
    let policy = Policy { grace_secs: 0.1, ..SETUP.policy };
    let setup = Setup { policy, interrupt_on_message: true, ..SETUP };
    let (host, finished) = run_scripts(&[("a", &script)], setup);
    assert_eq!(finished.unwrap(), FinishReason::Interrupted);
    assert!(host.story()[1].starts_with("a killed by signal 9"), "{:?}", host.story());
}

#[test]
fn a_grandchild_does_not_outlive_its_trial() {
    let script = "sleep 600 & echo $! > $ID.pid; touch $ID.verdict";
    let (host, finished) = run_scripts(&[("a", script)], SETUP);
    assert_eq!(finished.unwrap(), FinishReason::Complete);
    let pid = std::fs::read_to_string(host.dir.path().join("a.pid")).unwrap();
    // SIGKILL is on its way: the process is gone soon, or a zombie that nobody has collected yet.
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !(stat().is_empty() || stat().contains(") Z")) {
        assert!(std::time::Instant::now() < deadline, "{}", stat());
        std::thread::yield_now();
    }
}

#[test]
fn slots_run_side_by_side() {
    // Each waits for the other's file: this ends only if both run at once.
    let script =
        "touch $ID.here; while [ ! -e a.here ] || [ ! -e b.here ]; do sleep 0.01; done; touch $ID.verdict";
    let (_, finished) = run_scripts(&[("a", script), ("b", script)], Setup { n_slots: 2, ..SETUP });
    assert_eq!(finished.unwrap(), FinishReason::Complete);
}

#[test]
fn a_journal_that_cannot_be_written_ends_the_run_and_its_trials() {
    let script = "echo $$ > $ID.pid; while :; do sleep 600; done";
    let setup = Setup { n_slots: 2, fail_record_at: Some(1), ..SETUP };
    let (host, finished) = run_scripts(&[("a", script), ("b", script)], setup);
    let error = finished.unwrap_err().to_string();
    assert!(error.contains("append to"), "{error}");
    assert_eq!(host.story(), ["a started #1"]);
}
