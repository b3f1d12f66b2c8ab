//! From the lines of a journal to the state of a run. Pure: bytes in, [`RunState`] out.

use crate::{
    event::{Event, JOURNAL_VERSION, JournalLine},
    slot::SlotId,
    trial::{TrialId, TrialStatus},
};
use std::collections::BTreeMap;

/// A journal that cannot be replayed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReplayError {
    /// A line that is not the last cannot be read: the file was damaged, not merely cut off.
    #[error("line {line} cannot be read: {detail}; remove that line to go on without it")]
    BadLine {
        /// Counted from 1.
        line: usize,
        /// Why.
        detail: String,
    },
    /// Written by a newer version.
    #[error("line {line}: journal version {found}; this version of saesweep reads up to {JOURNAL_VERSION}")]
    Version {
        /// Counted from 1.
        line: usize,
        /// Version of the writer.
        found: u32,
    },
}

/// State of a run according to its journal.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunState {
    /// The trials that the last run wanted, in plan order.
    pub planned: Vec<TrialId>,
    /// Every trial that was ever planned or started.
    pub trials: BTreeMap<TrialId, TrialState>,
    /// How often a coordinator took the folder.
    pub runs: u32,
    /// Whether the last coordinator ended in order, and if so whether nothing remained.
    pub ended: Option<bool>,
    /// When the last coordinator started, in seconds since the Unix epoch.
    pub started_at_unix_secs: f64,
    /// When the last event was written.
    pub last_at_unix_secs: f64,
}

/// State of one trial.
#[derive(Debug, Clone, PartialEq)]
pub struct TrialState {
    /// Where it stands.
    pub phase: TrialPhase,
    /// Processes started for it, in all runs together.
    pub attempts: u32,
}

/// Where a trial stands.
#[derive(Debug, Clone, PartialEq)]
pub enum TrialPhase {
    /// Not started yet.
    Pending,
    /// Its process runs, or ran when the coordinator died.
    Running {
        /// Where.
        slot: SlotId,
        /// Since when, in seconds since the Unix epoch.
        since_unix_secs: f64,
    },
    /// Stopped without a verdict; will be continued.
    Interrupted {
        /// How it ended.
        reason: String,
    },
    /// Has its verdict.
    Ended {
        /// Verdict.
        status: TrialStatus,
        /// Why, when not done.
        reason: Option<String>,
        /// Seconds from its first start in that run.
        secs: f64,
    },
}

/// What a replay gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Replayed {
    /// The state after the last whole line.
    pub state: RunState,
    /// Length of the whole lines in bytes; what follows is a torn line that a writer cuts off.
    pub whole_bytes: usize,
}

/// Replays a journal. A last line that is cut off or unreadable was torn by a crash and is left out.
///
/// # Errors
/// A line before the last that cannot be read, or a journal of a newer version.
pub fn replay(journal: &[u8]) -> Result<Replayed, ReplayError> {
    let mut state = RunState::default();
    let mut whole_bytes = 0;
    let mut line_number = 0;
    while let Some(length) = journal[whole_bytes..].iter().position(|&byte| byte == b'\n') {
        line_number += 1;
        let line = &journal[whole_bytes..whole_bytes + length];
        let end = whole_bytes + length + 1;
        if !line.iter().all(u8::is_ascii_whitespace) {
            match serde_json::from_slice::<JournalLine>(line) {
                Ok(line) => state.apply(&line, line_number)?,
                Err(_) if end == journal.len() => break,
                Err(error) => {
                    return Err(ReplayError::BadLine { line: line_number, detail: error.to_string() });
                }
            }
        }
        whole_bytes = end;
    }
    Ok(Replayed { state, whole_bytes })
}

impl RunState {
    fn apply(&mut self, line: &JournalLine, line_number: usize) -> Result<(), ReplayError> {
        self.last_at_unix_secs = line.at_unix_secs;
        match &line.event {
            Event::RunStarted { version, .. } => {
                if *version > JOURNAL_VERSION {
                    return Err(ReplayError::Version { line: line_number, found: *version });
                }
                self.runs += 1;
                self.ended = None;
                self.started_at_unix_secs = line.at_unix_secs;
                for trial in self.trials.values_mut() {
                    if matches!(trial.phase, TrialPhase::Running { .. }) {
                        trial.phase = TrialPhase::Interrupted { reason: "its coordinator ended".to_owned() };
                    }
                }
            }
            Event::Planned { trials } => {
                self.planned.clone_from(trials);
                for id in trials {
                    self.trial(id);
                }
            }
            Event::TrialStarted { id, slot, .. } => {
                let since_unix_secs = line.at_unix_secs;
                let trial = self.trial(id);
                trial.attempts += 1;
                trial.phase = TrialPhase::Running { slot: slot.clone(), since_unix_secs };
            }
            Event::TrialEnded { id, status, reason, secs } => {
                self.trial(id).phase =
                    TrialPhase::Ended { status: *status, reason: reason.clone(), secs: *secs };
            }
            Event::TrialInterrupted { id, reason, .. } => {
                self.trial(id).phase = TrialPhase::Interrupted { reason: reason.clone() };
            }
            Event::RunEnded { complete } => self.ended = Some(*complete),
        }
        Ok(())
    }

    fn trial(&mut self, id: &TrialId) -> &mut TrialState {
        self.trials.entry(id.clone()).or_insert(TrialState { phase: TrialPhase::Pending, attempts: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::DeviceKind;
    use proptest::prelude::*;

    fn id(n: u8) -> TrialId {
        TrialId(format!("{n:012x}"))
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let trial = (0u8..4).prop_map(id);
        let slot = (0usize..3).prop_map(|index| SlotId { kind: DeviceKind::Cpu, index });
        let status =
            prop_oneof![Just(TrialStatus::Done), Just(TrialStatus::Diverged), Just(TrialStatus::Failed)];
        prop_oneof![
            any::<u32>().prop_map(|pid| Event::RunStarted {
                version: JOURNAL_VERSION,
                saesweep: "0".to_owned(),
                host: "höst".to_owned(),
                pid
            }),
            proptest::collection::vec(trial.clone(), 0..4).prop_map(|trials| Event::Planned { trials }),
            (trial.clone(), slot, 1u32..4).prop_map(|(id, slot, attempt)| Event::TrialStarted {
                id,
                slot,
                attempt
            }),
            (trial.clone(), status, ".{0,12}", 0.0f64..1e6).prop_map(|(id, status, reason, secs)| {
                Event::TrialEnded { id, status, reason: Some(reason), secs }
            }),
            (trial, ".{0,12}", any::<bool>()).prop_map(|(id, reason, counts)| Event::TrialInterrupted {
                id,
                reason,
                counts
            }),
            any::<bool>().prop_map(|complete| Event::RunEnded { complete }),
        ]
    }

    fn lines(events: &[Event]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (idx, event) in events.iter().enumerate() {
            let line = JournalLine { at_unix_secs: idx as f64, event: event.clone() };
            bytes.extend(serde_json::to_vec(&line).unwrap());
            bytes.push(b'\n');
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Wherever the file is cut, the replay is that of the whole lines before the cut.
        #[test]
        fn any_prefix_replays(events in proptest::collection::vec(any_event(), 0..12)) {
            let journal = lines(&events);
            for cut in 0..=journal.len() {
                let whole = journal[..cut].iter().filter(|&&byte| byte == b'\n').count();
                let replayed = replay(&journal[..cut]).unwrap();
                let expected = lines(&events[..whole]);
                prop_assert_eq!(replayed.whole_bytes, expected.len());
                prop_assert_eq!(replayed.state, replay(&expected).unwrap().state);
            }
        }

        /// Garbage after the last whole line changes nothing, with or without its own line end.
        #[test]
        fn a_torn_tail_is_left_out(
            events in proptest::collection::vec(any_event(), 0..6),
            garbage in proptest::collection::vec(0u8..=9, 1..20),
            ended in any::<bool>(),
        ) {
            let journal = lines(&events);
            let mut torn = journal.clone();
            torn.push(b'{');
            torn.extend(&garbage);
            if ended {
                torn.push(b'\n');
            }
            let replayed = replay(&torn).unwrap();
            prop_assert_eq!(replayed.whole_bytes, journal.len());
            prop_assert_eq!(replayed.state, replay(&journal).unwrap().state);
        }
    }

    #[test]
    fn a_bad_line_in_the_middle_is_named() {
        let mut journal = lines(&[Event::RunEnded { complete: true }]);
        journal.extend(b"{\"event\":\"nonsense\"}\n");
        journal.extend(lines(&[Event::RunEnded { complete: true }]));
        assert!(matches!(replay(&journal), Err(ReplayError::BadLine { line: 2, .. })));
    }

    #[test]
    fn a_newer_journal_is_refused() {
        let journal = lines(&[Event::RunStarted {
            version: JOURNAL_VERSION + 1,
            saesweep: "9".to_owned(),
            host: "h".to_owned(),
            pid: 1,
        }]);
        assert_eq!(replay(&journal), Err(ReplayError::Version { line: 1, found: JOURNAL_VERSION + 1 }));
    }

    #[test]
    fn what_ran_when_the_coordinator_died_counts_as_interrupted() {
        let start = |pid| Event::RunStarted {
            version: JOURNAL_VERSION,
            saesweep: "0".to_owned(),
            host: "h".to_owned(),
            pid,
        };
        let slot = SlotId { kind: DeviceKind::Cpu, index: 0 };
        let events = [start(1), Event::TrialStarted { id: id(1), slot, attempt: 1 }, start(2)];
        let state = replay(&lines(&events)).unwrap().state;
        assert!(matches!(state.trials[&id(1)].phase, TrialPhase::Interrupted { .. }));
        assert_eq!((state.trials[&id(1)].attempts, state.runs), (1, 2));
    }

    /// A journal of version 1 as it was first written; it must stay readable.
    #[test]
    fn the_stored_sample_replays() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rundir/events-v1.jsonl");
        let replayed = replay(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(replayed.state.planned.len(), 3);
        assert_eq!(replayed.state.ended, Some(false));
        let phases: Vec<_> =
            replayed.state.planned.iter().map(|id| &replayed.state.trials[id].phase).collect();
        assert!(matches!(phases[0], TrialPhase::Ended { status: TrialStatus::Done, .. }));
        assert!(matches!(phases[1], TrialPhase::Ended { status: TrialStatus::Failed, .. }));
        assert!(matches!(phases[2], TrialPhase::Interrupted { .. }));
    }
}
