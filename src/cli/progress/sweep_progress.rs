//! The trials of a sweep: one line per running trial, a line at the bottom for the whole, and the result of
//! each trial as it ends.

use super::style;
use crate::{
    cli::{console::Console, show},
    event::{Event, TrialMessage},
    trial::{TrialId, TrialResult, TrialStatus},
};
use indicatif::ProgressBar;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What is said of a trial besides its id.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct TrialLabel {
    /// Its settings that vary, in few words.
    pub(in crate::cli) settings: String,
    /// Its share of the work, in any unit.
    pub(in crate::cli) cost: f64,
}

/// Shows a run.
#[derive(Debug)]
pub(in crate::cli) struct SweepProgress {
    console: Console,
    labels: BTreeMap<TrialId, TrialLabel>,
    running: BTreeMap<TrialId, Line>,
    total: Option<ProgressBar>,
    n_trials: usize,
    n_kept: usize,
    counts: [usize; 3],
    cost_done: f64,
    /// Part of a trial's time that its evaluation takes, as far as is known.
    eval_share: f64,
    cost_total: f64,
    started: Instant,
    last_plain: Instant,
}

#[derive(Debug)]
struct Line {
    slot: String,
    bar: Option<ProgressBar>,
    /// When training began, and after how many steps.
    began: Instant,
    from_step: u64,
    step: u64,
    steps: u64,
    text: String,
}

impl Line {
    /// Time until the last step, at the speed so far; `None` while that says little.
    fn secs_left(&self, now: Instant) -> Option<f64> {
        let elapsed = (now - self.began).as_secs_f64();
        let done = self.step.saturating_sub(self.from_step) as f64;
        (elapsed > 1.0 && done > 0.0).then(|| self.steps.saturating_sub(self.step) as f64 * elapsed / done)
    }
}

/// Time between two plain summaries.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// Metrics on a trial's result line, besides the objective.
const RESULT_METRICS: [&str; 3] = ["ce_loss_score", "recovered_share", "l0"];

impl SweepProgress {
    /// A sweep of the trials in `labels`, besides `n_kept` that have ended before.
    pub(in crate::cli) fn new(
        console: &Console,
        labels: BTreeMap<TrialId, TrialLabel>,
        n_kept: usize,
        now: Instant,
    ) -> Self {
        let total = console.is_live().then(|| {
            let bar = console.bars().add(ProgressBar::new(labels.len() as u64));
            bar.set_style(style("{msg}"));
            bar
        });
        let mut progress = Self {
            console: console.clone(),
            n_trials: labels.len() + n_kept,
            cost_total: labels.values().map(|label| label.cost).sum(),
            labels,
            running: BTreeMap::new(),
            total,
            n_kept,
            counts: [0; 3],
            cost_done: 0.0,
            eval_share: 0.0,
            started: now,
            last_plain: now,
        };
        progress.tick(now);
        progress
    }

    /// Something was written to the journal.
    pub(in crate::cli) fn event(&mut self, event: &Event, result: Option<&TrialResult>, now: Instant) {
        match event {
            Event::TrialStarted { id, slot, .. } => self.start(id, slot.to_string(), now),
            Event::TrialEnded { id, status, reason, secs } => {
                self.remove(id);
                self.counts[*status as usize] += 1;
                self.cost_done += self.labels.get(id).map_or(0.0, |label| label.cost);
                if let Some(result) = result.filter(|result| result.status == TrialStatus::Done) {
                    let (train, eval) = (result.timing.train_secs, result.timing.eval_secs);
                    self.eval_share = eval / (train + eval).max(1e-9);
                }
                self.console.note(&self.result_line(id, *status, reason.as_deref(), *secs, result));
                self.tick(now);
            }
            Event::TrialInterrupted { id, reason, counts } => {
                self.remove(id);
                let next = if *counts { "; starting it again" } else { "" };
                self.console.note(&format!("trial {id} {reason}{next}"));
            }
            Event::RunStarted { .. } | Event::Planned { .. } | Event::RunEnded { .. } => {}
        }
    }

    /// A trial said something.
    pub(in crate::cli) fn message(&mut self, id: &TrialId, message: &TrialMessage, now: Instant) {
        let Some(line) = self.running.get_mut(id) else { return };
        match message {
            TrialMessage::Started { from_step, steps } => {
                (line.from_step, line.step, line.steps, line.began) = (*from_step, *from_step, *steps, now);
                if let Some(bar) = &line.bar {
                    bar.set_style(style("{prefix} {wide_bar} {pos}/{len}  {msg}"));
                }
            }
            TrialMessage::Progress { step, loss, l0, tokens_per_sec } => {
                line.step = *step;
                line.text = format!(
                    "loss {}  L0 {}  {} tokens/s",
                    show::number(*loss),
                    show::number(*l0),
                    show::count(*tokens_per_sec as u64)
                );
                if let Some(left) = line.secs_left(now) {
                    line.text = format!("{}  {} left", line.text, show::secs(left));
                }
            }
            TrialMessage::Evaluating => {
                line.step = line.steps;
                line.text = "evaluating".to_owned();
            }
            TrialMessage::Ended { .. } => {}
        }
        if let Some(bar) = &line.bar {
            bar.set_length(line.steps);
            bar.set_position(line.step);
            bar.set_message(line.text.clone());
        }
    }

    /// Some time has passed.
    pub(in crate::cli) fn tick(&mut self, now: Instant) {
        if let Some(total) = &self.total {
            total.set_message(self.summary(now));
            total.tick();
        } else if now - self.last_plain >= PLAIN_EVERY {
            self.last_plain = now;
            self.console.note(&self.summary(now));
            for (id, line) in &self.running {
                let step = format!("step {} of {}", show::count(line.step), show::count(line.steps));
                self.console.note(&format!("  {} {id} {step} {}", line.slot, line.text));
            }
        }
    }

    /// Takes the bars away.
    pub(in crate::cli) fn finish(&mut self) {
        let bars = std::mem::take(&mut self.running).into_values().filter_map(|line| line.bar);
        for bar in bars.chain(self.total.take()) {
            bar.finish_and_clear();
        }
    }

    fn start(&mut self, id: &TrialId, slot: String, now: Instant) {
        let bar = self.total.as_ref().map(|total| {
            let bar = self.console.bars().insert_before(total, ProgressBar::new(0));
            bar.set_style(style("{prefix}  starting"));
            let settings = self.labels.get(id).map_or("", |label| label.settings.as_str());
            // The settings say more than the id, and lines are short.
            let name = if settings.is_empty() { id.0.as_str() } else { settings };
            bar.set_prefix(format!("{slot} {name}"));
            bar
        });
        let line = Line { slot, bar, began: now, from_step: 0, step: 0, steps: 0, text: String::new() };
        self.running.insert(id.clone(), line);
    }

    fn remove(&mut self, id: &TrialId) {
        if let Some(bar) = self.running.remove(id).and_then(|line| line.bar) {
            bar.finish_and_clear();
            self.console.bars().remove(&bar);
        }
    }

    fn result_line(
        &self,
        id: &TrialId,
        status: TrialStatus,
        reason: Option<&str>,
        secs: f64,
        result: Option<&TrialResult>,
    ) -> String {
        let n_ended = self.n_kept + self.counts.iter().sum::<usize>();
        let width = self.n_trials.to_string().len();
        let settings = self.labels.get(id).map_or("", |label| &label.settings);
        let word = match status {
            TrialStatus::Done => "done",
            TrialStatus::Diverged => "DIVERGED",
            TrialStatus::Failed => "FAILED",
        };
        let metrics = result.map(|result| &result.metrics);
        let metrics = RESULT_METRICS
            .iter()
            .filter_map(|name| Some(format!("{name} {}", show::number(*metrics?.get(*name)?))));
        let outcome = match status {
            TrialStatus::Done => metrics.collect::<Vec<_>>().join("  "),
            TrialStatus::Diverged | TrialStatus::Failed => reason.unwrap_or_default().to_owned(),
        };
        let parts =
            [format!("[{n_ended:>width$}/{}] {word} {id}", self.n_trials), settings.to_owned(), outcome];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}  ({})", parts.join("  "), show::secs(secs))
    }

    fn summary(&self, now: Instant) -> String {
        let [done, diverged, failed] = self.counts;
        let mut text = format!("{} of {} trials", self.n_kept + done + diverged + failed, self.n_trials);
        for (n, word) in [(diverged, "diverged"), (failed, "failed")] {
            if n > 0 {
                text = format!("{text}, {n} {word}");
            }
        }
        let elapsed = (now - self.started).as_secs_f64();
        text = format!("{text}, {} so far", show::secs(elapsed));
        match self.secs_left(elapsed) {
            Some(left) => format!("{text}, about {} left", show::secs(left)),
            None => text,
        }
    }

    /// Time left, from the share of the work that is done; `None` while too little is.
    fn secs_left(&self, elapsed: f64) -> Option<f64> {
        // Evaluation comes after the steps and takes its part, too.
        let training = 1.0 - self.eval_share;
        let share = |line: &Line, step: u64| training * step as f64 / line.steps.max(1) as f64;
        let of_running = |step: &dyn Fn(&Line) -> u64| -> f64 {
            let cost = |id: &TrialId| self.labels.get(id).map_or(0.0, |label| label.cost);
            self.running.iter().map(|(id, line)| cost(id) * share(line, step(line))).sum()
        };
        // Steps that an earlier run did are done, but were not done in this time.
        let given = of_running(&|line| line.from_step);
        let done = self.cost_done + of_running(&|line| line.step);
        let worked = done - given;
        (worked > 0.002 * self.cost_total && elapsed > 1.0)
            .then(|| (self.cost_total - done).max(0.0) * elapsed / worked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::args::Arguments,
        slot::{DeviceKind, SlotId},
    };
    use clap::Parser;

    #[test]
    fn time_left_counts_only_the_work_of_this_run() {
        let arguments = Arguments::try_parse_from(["saesweep", "-q", "status"]).unwrap();
        let console = Console::new(&arguments.shared);
        let id = |n: u32| TrialId(format!("t{n}"));
        let labels = (0..4).map(|n| (id(n), TrialLabel { settings: String::new(), cost: 1.0 })).collect();
        let start = Instant::now();
        let mut progress = SweepProgress::new(&console, labels, 3, start);
        let slot = SlotId { kind: DeviceKind::Cpu, index: 0 };
        progress.event(&Event::TrialStarted { id: id(0), slot, attempt: 1 }, None, start);
        progress.message(&id(0), &TrialMessage::Started { from_step: 50, steps: 100 }, start);
        assert_eq!(progress.secs_left(10.0), None);
        let message = TrialMessage::Progress { step: 75, loss: 1.0, l0: 2.0, tokens_per_sec: 3.0 };
        progress.message(&id(0), &message, start);
        // A quarter of a trial took 10 s; 3.25 trials remain.
        assert_eq!(progress.secs_left(10.0), Some(130.0));
        let ended = Event::TrialEnded {
            id: id(0),
            status: TrialStatus::Diverged,
            reason: Some("NaN".to_owned()),
            secs: 61.0,
        };
        progress.event(&ended, None, start);
        assert_eq!(progress.summary(start), "4 of 7 trials, 1 diverged, 0.0s so far");
        let line = progress.result_line(&id(0), TrialStatus::Diverged, Some("NaN"), 61.0, None);
        assert_eq!(line, "[4/7] DIVERGED t0  NaN  (1m 01s)");
    }
}
