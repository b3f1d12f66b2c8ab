//! The terminal: progress bars, notes and logs on stderr that do not disturb one another.

use super::args::Shared;
use indicatif::{MultiProgress, ProgressDrawTarget};
use std::io::{IsTerminal, Write};
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    registry,
};

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
        let lines = fmt::layer()
            .with_writer(LogWriter { bars: console.bars.clone() })
            .with_ansi(std::io::stderr().is_terminal() && !is_set("NO_COLOR"))
            .with_target(false)
            // It would complain on stderr, and panic where that is closed.
            .log_internal_errors(false)
            .with_filter(filter.and(filter_fn(may_be_shown)));
        // A second console (in tests) logs through the first.
        if tracing::subscriber::set_global_default(registry().with(lines)).is_err() {
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
            // A closed stderr must not stop a sweep. Nor may it be logged here: a log line waits for the bars.
            let _is_open = writeln!(std::io::stderr().lock(), "{text}");
        });
    }
}

/// What no setting can bring into the log: the finer lines of what speaks with the hub, because those hold
/// requests with their headers, and so the token.
fn may_be_shown(metadata: &Metadata<'_>) -> bool {
    const NETWORK: [&str; 5] = ["hf_hub", "http", "rustls", "ureq", "ureq_proto"];
    let krate = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !NETWORK.contains(&krate)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Keeps what is logged.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn headers_of_requests_are_never_logged() {
        let kept = Kept::default();
        let writer = kept.clone();
        let filter = EnvFilter::new("trace,ureq_proto::client=trace").and(filter_fn(may_be_shown));
        let lines = fmt::layer().with_writer(move || writer.clone()).with_filter(filter);
        tracing::subscriber::with_default(registry().with(lines), || {
            tracing::trace!(target: "ureq_proto::client", "Authorization: Bearer one");
            tracing::debug!(target: "ureq", "Authorization: Bearer two");
            tracing::info!(target: "ureq", "three");
            tracing::trace!("four");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("Bearer") && text.contains("three") && text.contains("four"), "{text}");
    }
}
