//! The scheduler core against a world that does its worst, and the cases that a reader wants to see.

use super::*;
use crate::slot::{DeviceKind, SlotId};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn ids(n: usize) -> Vec<TrialId> {
    (0..n).map(|n| TrialId(format!("t{n}"))).collect()
}

fn slots(n: usize) -> Vec<Slot> {
    (0..n).map(|index| Slot { id: SlotId { kind: DeviceKind::Cpu, index }, threads: 1 }).collect()
}

fn policy(retries: u32, on_failure: OnFailure) -> Policy {
    Policy { retries, on_failure, grace_secs: 10.0 }
}

fn died(id: &str) -> Input {
    Input::Exited { id: TrialId(id.to_owned()), verdict: None, exit: Exit::Signal(9) }
}

fn ended(id: &str, status: TrialStatus) -> Input {
    Input::Exited {
        id: TrialId(id.to_owned()),
        verdict: Some(Verdict { status, reason: None }),
        exit: Exit::Code(0),
    }
}

/// One word per action, for cases that should read as a story.
fn words(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .map(|action| match action {
            Action::Start { id, slot, attempt } => format!("start {id} on {} #{attempt}", slot.id),
            Action::Terminate { id } => format!("term {id}"),
            Action::Kill { id } => format!("kill {id}"),
            Action::Record(Event::TrialStarted { id, .. }) => format!("record start {id}"),
            Action::Record(Event::TrialEnded { id, status, .. }) => format!("record {status:?} {id}"),
            Action::Record(Event::TrialInterrupted { id, counts, .. }) => {
                format!("record interrupted {id}{}", if *counts { ", counts" } else { "" })
            }
            Action::Record(Event::RunEnded { complete }) => format!("record run ended {complete}"),
            Action::Record(event) => format!("record {event:?}"),
            Action::Finish(reason) => format!("finish {reason:?}"),
        })
        .collect()
}

#[test]
fn trials_go_to_free_slots_in_plan_order() {
    let mut core = Core::new(policy(1, OnFailure::Continue), slots(2), ids(3));
    assert_eq!(
        words(&core.handle(Input::Begin, 0.0)),
        ["record start t0", "start t0 on cpu:0 #1", "record start t1", "start t1 on cpu:1 #1"]
    );
    assert_eq!(
        words(&core.handle(ended("t1", TrialStatus::Done), 5.0)),
        ["record Done t1", "record start t2", "start t2 on cpu:1 #1"]
    );
    assert_eq!(words(&core.handle(ended("t0", TrialStatus::Diverged), 6.0)), ["record Diverged t0"]);
    assert_eq!(
        words(&core.handle(ended("t2", TrialStatus::Done), 7.0)),
        ["record Done t2", "record run ended true", "finish Complete"]
    );
    assert!(core.handle(Input::Interrupt, 8.0).is_empty());
}

#[test]
fn a_death_is_retried_behind_the_others_and_then_fails() {
    let mut core = Core::new(policy(1, OnFailure::Continue), slots(1), ids(2));
    core.handle(Input::Begin, 0.0);
    assert_eq!(
        words(&core.handle(died("t0"), 1.0)),
        ["record interrupted t0, counts", "record start t1", "start t1 on cpu:0 #1"]
    );
    core.handle(ended("t1", TrialStatus::Done), 2.0);
    let actions = core.handle(died("t0"), 3.0);
    let Action::Record(Event::TrialEnded { reason, secs, .. }) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(
        reason.as_deref(),
        Some("died 2 times without a result; last: killed by signal 9 (SIGKILL; out of memory?)")
    );
    assert_eq!(*secs, 3.0);
    assert_eq!(words(&actions[1..]), ["record run ended true", "finish Complete"]);
}

#[test]
fn a_failure_can_stop_the_supply() {
    let mut core = Core::new(policy(0, OnFailure::Stop), slots(2), ids(3));
    core.handle(Input::Begin, 0.0);
    assert_eq!(words(&core.handle(ended("t0", TrialStatus::Failed), 1.0)), ["record Failed t0"]);
    assert_eq!(
        words(&core.handle(ended("t1", TrialStatus::Done), 2.0)),
        ["record Done t1", "record run ended false", "finish StoppedOnFailure"]
    );
}

#[test]
fn one_interrupt_asks_and_the_end_of_grace_kills() {
    let mut core = Core::new(policy(1, OnFailure::Continue), slots(2), ids(3));
    core.handle(Input::Begin, 0.0);
    assert_eq!(words(&core.handle(Input::Interrupt, 1.0)), ["term t0", "term t1"]);
    let stopped =
        Input::Exited { id: TrialId("t0".to_owned()), verdict: None, exit: Exit::Code(EXIT_STOPPED) };
    assert_eq!(words(&core.handle(stopped, 2.0)), ["record interrupted t0"]);
    assert!(core.handle(Input::Tick, 10.9).is_empty());
    assert_eq!(words(&core.handle(Input::Tick, 11.0)), ["kill t1"]);
    assert!(core.handle(Input::Tick, 12.0).is_empty());
    assert_eq!(
        words(&core.handle(died("t1"), 12.0)),
        ["record interrupted t1", "record run ended false", "finish Interrupted"]
    );
}

#[test]
fn two_interrupts_kill_at_once() {
    let mut core = Core::new(policy(1, OnFailure::Continue), slots(1), ids(1));
    core.handle(Input::Begin, 0.0);
    core.handle(Input::Interrupt, 1.0);
    assert_eq!(words(&core.handle(Input::Interrupt, 1.0)), ["kill t0"]);
    assert!(core.handle(Input::Interrupt, 1.0).is_empty());
}

#[test]
fn a_trial_that_finishes_while_being_stopped_keeps_its_verdict() {
    let mut core = Core::new(policy(1, OnFailure::Continue), slots(1), ids(1));
    core.handle(Input::Begin, 0.0);
    core.handle(Input::Interrupt, 1.0);
    assert_eq!(
        words(&core.handle(ended("t0", TrialStatus::Done), 2.0)),
        ["record Done t0", "record run ended true", "finish Complete"]
    );
}

#[test]
fn no_trials_at_all_is_a_complete_run() {
    let mut core = Core::new(policy(1, OnFailure::Continue), slots(1), vec![]);
    assert_eq!(words(&core.handle(Input::Begin, 0.0)), ["record run ended true", "finish Complete"]);
}

/// What the world does next; numbers choose among what is possible.
#[derive(Debug, Clone)]
enum Step {
    Exit { which: usize, verdict: Option<TrialStatus>, exit: Exit },
    StrayExit { which: usize },
    Interrupt,
    Tick { secs: f64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![
        3 => Just(None),
        3 => Just(Some(TrialStatus::Done)),
        1 => Just(Some(TrialStatus::Diverged)),
        1 => Just(Some(TrialStatus::Failed)),
    ];
    let exit = prop_oneof![
        Just(Exit::Code(0)),
        Just(Exit::Code(1)),
        Just(Exit::Code(EXIT_STOPPED)),
        Just(Exit::Signal(9)),
        Just(Exit::NotStarted("no memory".to_owned())),
    ];
    prop_oneof![
        12 => (any::<usize>(), verdict, exit).prop_map(|(which, verdict, exit)| Step::Exit { which, verdict, exit }),
        1 => any::<usize>().prop_map(|which| Step::StrayExit { which }),
        1 => Just(Step::Interrupt),
        2 => (0.0f64..8.0).prop_map(|secs| Step::Tick { secs }),
    ]
}

/// The world outside: it carries out actions and holds the core to its promises.
#[derive(Default)]
struct World {
    running: BTreeMap<TrialId, SlotId>,
    starts: BTreeMap<TrialId, u32>,
    counted_deaths: BTreeMap<TrialId, u32>,
    ended: BTreeSet<TrialId>,
    recorded_start: Option<TrialId>,
    exit_unrecorded: Option<TrialId>,
    interrupted_at: Option<f64>,
    failed: bool,
    finished: Option<FinishReason>,
}

impl World {
    fn carry_out(&mut self, actions: Vec<Action>, policy: &Policy) -> Result<(), TestCaseError> {
        for action in actions {
            prop_assert!(self.finished.is_none(), "{:?} after the end", action);
            match action {
                Action::Start { id, slot, attempt } => {
                    prop_assert_eq!(self.recorded_start.take(), Some(id.clone()));
                    prop_assert!(self.interrupted_at.is_none(), "started after an interrupt");
                    prop_assert!(!(self.failed && policy.on_failure == OnFailure::Stop));
                    prop_assert!(!self.ended.contains(&id), "{} started after its end", id);
                    prop_assert!(self.running.values().all(|busy| *busy != slot.id), "{} is taken", slot.id);
                    let starts = self.starts.entry(id.clone()).or_default();
                    *starts += 1;
                    prop_assert_eq!(*starts, attempt);
                    prop_assert!(*starts <= policy.retries + 1);
                    prop_assert_eq!(self.running.insert(id, slot.id), None);
                }
                Action::Terminate { id } | Action::Kill { id } => {
                    prop_assert!(self.running.contains_key(&id));
                    prop_assert!(self.interrupted_at.is_some());
                }
                Action::Record(Event::TrialStarted { id, .. }) => {
                    prop_assert_eq!(self.recorded_start.replace(id), None);
                }
                Action::Record(Event::TrialEnded { id, status, .. }) => {
                    prop_assert_eq!(self.exit_unrecorded.take(), Some(id.clone()));
                    prop_assert!(self.ended.insert(id), "ended twice");
                    self.failed |= status == TrialStatus::Failed;
                }
                Action::Record(Event::TrialInterrupted { id, counts, .. }) => {
                    prop_assert_eq!(self.exit_unrecorded.take(), Some(id.clone()));
                    prop_assert_eq!(counts, self.interrupted_at.is_none());
                    let deaths = self.counted_deaths.entry(id).or_default();
                    *deaths += u32::from(counts);
                    prop_assert!(*deaths <= policy.retries);
                }
                Action::Record(Event::RunEnded { .. }) => prop_assert!(self.running.is_empty()),
                Action::Record(event) => prop_assert!(false, "{:?} is not the core's to record", event),
                Action::Finish(reason) => self.finished = Some(reason),
            }
        }
        prop_assert_eq!(&self.exit_unrecorded, &None);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn slots_are_never_shared_and_every_trial_ends_once(
        n_slots in 1usize..5,
        n_trials in 0usize..9,
        retries in 0u32..3,
        on_failure in prop_oneof![Just(OnFailure::Continue), Just(OnFailure::Stop)],
        steps in proptest::collection::vec(any_step(), 0..80),
    ) {
        let policy = policy(retries, on_failure);
        let all = ids(n_trials);
        let mut core = Core::new(policy, slots(n_slots), all.clone());
        let mut world = World::default();
        let mut now = 0.0;
        world.carry_out(core.handle(Input::Begin, now), &policy)?;
        for step in steps {
            match step {
                Step::Exit { which, verdict, exit } => {
                    let Some(id) = world.running.keys().nth(which % world.running.len().max(1)).cloned() else {
                        continue;
                    };
                    world.running.remove(&id);
                    world.exit_unrecorded = Some(id.clone());
                    let verdict = verdict.map(|status| Verdict { status, reason: None });
                    world.carry_out(core.handle(Input::Exited { id, verdict, exit }, now), &policy)?;
                }
                Step::StrayExit { which } => {
                    let Some(id) = all.get(which % n_trials.max(1)) else { continue };
                    if !world.running.contains_key(id) {
                        let input = Input::Exited { id: id.clone(), verdict: None, exit: Exit::Code(1) };
                        prop_assert_eq!(core.handle(input, now), vec![]);
                    }
                }
                Step::Interrupt => {
                    if world.finished.is_none() {
                        world.interrupted_at.get_or_insert(now);
                    }
                    world.carry_out(core.handle(Input::Interrupt, now), &policy)?;
                }
                Step::Tick { secs } => {
                    now += secs;
                    let actions = core.handle(Input::Tick, now);
                    world.carry_out(actions, &policy)?;
                }
            }
            prop_assert_eq!(core.n_running(), world.running.len());
            // Free slots do not idle while trials wait.
            if world.interrupted_at.is_none() && !(world.failed && on_failure == OnFailure::Stop) {
                prop_assert!(core.n_waiting() == 0 || world.running.len() == n_slots);
            }
        }
        // Let everything that still runs come to an end: the run must finish, and say truly how.
        while let Some(id) = world.running.keys().next().cloned() {
            world.running.remove(&id);
            world.exit_unrecorded = Some(id.clone());
            let verdict = Some(Verdict { status: TrialStatus::Done, reason: None });
            world.carry_out(core.handle(Input::Exited { id, verdict, exit: Exit::Code(0) }, now), &policy)?;
        }
        let all_ended = world.ended.len() == n_trials;
        let expected = match world.finished {
            Some(FinishReason::Complete) => all_ended,
            Some(FinishReason::Interrupted) => !all_ended && world.interrupted_at.is_some(),
            Some(FinishReason::StoppedOnFailure) => !all_ended && world.failed,
            None => false,
        };
        prop_assert!(expected, "{:?} with {} of {} ended", world.finished, world.ended.len(), n_trials);
    }
}
