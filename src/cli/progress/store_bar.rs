//! The building of one activation store.

use super::style;
use crate::{
    cli::{console::Console, show},
    harvest::{HarvestPhase, HarvestProgress},
};
use indicatif::ProgressBar;
use std::time::{Duration, Instant};

/// Draws a bar, or prints a line now and then.
#[derive(Debug)]
pub(in crate::cli) struct StoreBar {
    console: Console,
    hook: String,
    bar: Option<ProgressBar>,
    phase: Option<(HarvestPhase, Instant, u64)>,
    last_line: Option<Instant>,
    was_built: bool,
}

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(20);

impl StoreBar {
    /// No progress yet. `hook` is for the user to see which store this is.
    pub(in crate::cli) fn new(console: &Console, hook: &str) -> Self {
        Self {
            console: console.clone(),
            hook: hook.to_owned(),
            bar: None,
            phase: None,
            last_line: None,
            was_built: false,
        }
    }

    /// Shows how far it is.
    pub(in crate::cli) fn show(&mut self, progress: &HarvestProgress) {
        let now = Instant::now();
        let is_new = self.phase.is_none_or(|(phase, ..)| phase != progress.phase);
        if is_new {
            self.phase = Some((progress.phase, now, progress.rows_done));
            self.last_line = None;
        }
        // What was there from the start and only had to be looked up is not worth a word.
        if progress.phase == HarvestPhase::Hashing {
            return;
        }
        self.was_built = true;
        if self.console.is_live() {
            self.draw(progress, is_new);
        } else if self.last_line.is_none_or(|last| now - last >= LINE_EVERY) {
            self.last_line = Some(now);
            self.console.note(&self.line(progress, now));
        }
    }

    /// Removes the bar; says whether anything was built.
    pub(in crate::cli) fn finish(mut self) -> bool {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.was_built
    }

    fn draw(&mut self, progress: &HarvestProgress, is_new: bool) {
        let text = self.line(progress, Instant::now());
        let bar = self.bar.get_or_insert_with(|| self.console.bars().add(ProgressBar::new(0)));
        if is_new {
            bar.reset_eta();
            let has_length = progress.rows_total > 0;
            bar.set_style(style(if has_length { "{msg} {wide_bar} {eta} left" } else { "{spinner} {msg}" }));
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar.set_length(progress.rows_total);
        bar.set_position(progress.rows_done);
        bar.set_message(text);
    }

    fn line(&self, progress: &HarvestProgress, now: Instant) -> String {
        let mut line = format!("store {}: {}", self.hook, words(progress.phase));
        let (done, total) = (show::count(progress.rows_done), show::count(progress.rows_total));
        match (progress.rows_done, progress.rows_total) {
            (_, 0) => {}
            (0, _) => line = format!("{line}, {total} tokens"),
            (_, _) => line = format!("{line}, {done} of {total} tokens"),
        }
        if let Some((_, since, from)) = self.phase
            && progress.rows_done > from
        {
            let speed = (progress.rows_done - from) as f64 / (now - since).as_secs_f64().max(1e-3);
            line = format!("{line}, {} tokens/s", show::count(speed as u64));
        }
        line
    }
}

fn words(phase: HarvestPhase) -> &'static str {
    match phase {
        HarvestPhase::Hashing => "hashing model and data",
        HarvestPhase::Loading => "loading the model",
        HarvestPhase::Tokenising => "tokenising",
        HarvestPhase::Harvesting => "harvesting activations",
        HarvestPhase::Evaluating => "held-out part",
    }
}
