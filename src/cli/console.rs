//! The terminal: progress bars, notes and logs on stderr that do not disturb one another.

use super::args::Shared;
use indicatif::{MultiProgress, ProgressDrawTarget};
use std::io::{IsTerminal, Write};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Environment variable with a filter for logs, in tracing's syntax.
const LOG_VARIABLE: &str = "SAESWEEP_LOG";

/// Where everything goes that is not a result. Clones share the terminal.
#[derive(Debug, Clone)]
pub(super) struct Console {
    bars: MultiProgress,
    quiet: bool,
    is_live: bool,
}

impl Console {
    /// Sets up bars and logs.
    pub(super) fn new(shared: &Shared) -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        // A CI system may offer a terminal that keeps every frame.
        let is_live = std::io::stderr().is_terminal() && !shared.quiet && !is_set("CI");
        let target = if is_live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let console = Self { bars: MultiProgress::with_draw_target(target), quiet: shared.quiet, is_live };
        let level = match (shared.quiet, shared.verbose) {
            (true, _) => "error",
            (false, 0) => "saesweep=info,warn",
            (false, 1) => "saesweep=debug,warn",
            (false, _) => "saesweep=trace,info",
        };
        let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_unset| EnvFilter::new(level));
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(LogWriter { bars: console.bars.clone() })
            .with_ansi(std::io::stderr().is_terminal() && !is_set("NO_COLOR"))
            .with_target(false)
            .finish();
        // A second console (in tests) logs through the first.
        if tracing::subscriber::set_global_default(subscriber).is_err() {
            tracing::debug!("logs go through the console that came first");
        }
        console
    }

    /// The bars; hidden unless a person looks.
    pub(super) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Whether bars are drawn; otherwise progress is told in plain lines.
    pub(super) fn is_live(&self) -> bool {
        self.is_live
    }

    /// A line for the user, unless quiet is wanted.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// The error that ends the command.
    pub(super) fn error(&self, error: &dyn std::error::Error) {
        self.line(&format!("error: {error}"));
    }

    fn line(&self, text: &str) {
        self.bars.suspend(|| {
            // A closed stderr must not stop a sweep.
            if writeln!(std::io::stderr().lock(), "{text}").is_err() {
                tracing::debug!("stderr is closed");
            }
        });
    }
}

/// Writes log lines while the bars are out of the way.
#[derive(Debug, Clone)]
struct LogWriter {
    bars: MultiProgress,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bars.suspend(|| std::io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
