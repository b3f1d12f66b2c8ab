//! Trial processes on this machine: started in their own process group, heard on stdout, ended as a group.
//!
//! Nothing is decided here. What a process says and how it ends goes to the dispatcher as a [`Report`].
//! Memory is bounded whatever a process prints: lines have a greatest length, and what is not a message goes
//! to the log, up to a limit.

use super::core::Exit;
use crate::{event::TrialMessage, slot::Slot, trial::TrialId};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStdout, Command},
    sync::mpsc,
};

/// How a trial's process is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialCommand {
    /// The program.
    pub program: PathBuf,
    /// The name it is told it was called by; `None` is the program's path.
    pub name: Option<OsString>,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Additions to its environment.
    pub env: Vec<(String, String)>,
    /// The file that takes its stderr and whatever it prints that is no message.
    pub log: PathBuf,
}

/// What comes from the processes.
#[derive(Debug)]
pub(super) enum Report {
    /// A line on stdout that is a message.
    Message { id: TrialId, message: TrialMessage },
    /// The process and everything it started have ended; no message of it will follow.
    Exited { id: TrialId, exit: Exit },
}

/// The longest line that can be a message.
const LINE_LIMIT: usize = 256 * 1024;
/// What one process may put into its log through stdout.
const STRAY_LIMIT: usize = 8 * 1024 * 1024;
/// How long the output of a dead process is waited for; only a process that left the group can hold it open.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// Variables by which libraries choose their number of threads.
const THREAD_VARIABLES: [&str; 4] =
    ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"];

/// The processes that run.
#[derive(Debug)]
pub(super) struct Processes {
    groups: BTreeMap<TrialId, Pid>,
    reports: mpsc::Sender<Report>,
}

impl Processes {
    /// No processes yet; their reports go to the receiver.
    pub(super) fn new() -> (Self, mpsc::Receiver<Report>) {
        // Bounded, so that a trial that prints faster than we read waits at its pipe.
        let (reports, receiver) = mpsc::channel(256);
        (Self { groups: BTreeMap::new(), reports }, receiver)
    }

    /// Starts a process. That it cannot be started is reported as its exit.
    pub(super) fn start(&mut self, id: &TrialId, slot: &Slot, attempt: u32, command: &TrialCommand) {
        let spawned = spawn(id, slot, attempt, command);
        let reports = self.reports.clone();
        let id = id.clone();
        match spawned {
            Ok((child, group, log)) => {
                self.groups.insert(id.clone(), group);
                tokio::spawn(supervise(child, group, log, id, reports));
            }
            Err(error) => {
                tokio::spawn(async move {
                    report(&reports, Report::Exited { id, exit: Exit::NotStarted(error.to_string()) }).await;
                });
            }
        }
    }

    /// Asks a trial's processes to stop.
    pub(super) fn terminate(&self, id: &TrialId) {
        self.signal(id, Signal::TERM);
    }

    /// Ends a trial's processes at once.
    pub(super) fn kill(&self, id: &TrialId) {
        self.signal(id, Signal::KILL);
    }

    /// Ends all processes at once.
    pub(super) fn kill_all(&self) {
        for id in self.groups.keys() {
            self.kill(id);
        }
    }

    /// Forgets a trial whose exit was reported.
    pub(super) fn forget(&mut self, id: &TrialId) {
        self.groups.remove(id);
    }

    /// Whether any process runs.
    pub(super) fn any(&self) -> bool {
        !self.groups.is_empty()
    }

    fn signal(&self, id: &TrialId, signal: Signal) {
        if let Some(&group) = self.groups.get(id) {
            signal_group(group, signal);
        }
    }
}

fn signal_group(group: Pid, signal: Signal) {
    match kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => tracing::warn!("cannot signal process group {}: {error}", group.as_raw_nonzero()),
    }
}

fn spawn(
    id: &TrialId,
    slot: &Slot,
    attempt: u32,
    command: &TrialCommand,
) -> std::io::Result<(Child, Pid, File)> {
    let mut log = open_log(&command.log)?;
    writeln!(log, "--- trial {id}, start {attempt}, on {} with {} threads ---", slot.id, slot.threads)?;
    let threads = slot.threads.to_string();
    let mut process = Command::new(&command.program);
    if let Some(name) = &command.name {
        process.arg0(name);
    }
    let child = process
        .args(&command.args)
        .envs(THREAD_VARIABLES.map(|name| (name, &threads)))
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log.try_clone()?))
        .spawn()?;
    let group = child
        .id()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        .expect("invariant: a child that was not waited for has a process id");
    Ok((child, group, log))
}

fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

async fn supervise(mut child: Child, group: Pid, log: File, id: TrialId, reports: mpsc::Sender<Report>) {
    let stdout = child.stdout.take().expect("invariant: stdout is piped");
    let reader = tokio::spawn(read_messages(stdout, log, id.clone(), reports.clone()));
    let exit = match child.wait().await {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        },
        Err(error) => {
            tracing::error!("cannot wait for trial {id}: {error}");
            Exit::Signal(0)
        }
    };
    // Whatever the trial itself started goes with it.
    signal_group(group, Signal::KILL);
    if tokio::time::timeout(OUTPUT_PATIENCE, reader).await.is_err() {
        tracing::warn!("trial {id} left a process behind that keeps its output open");
    }
    report(&reports, Report::Exited { id, exit }).await;
}

async fn report(reports: &mpsc::Sender<Report>, report: Report) {
    if reports.send(report).await.is_err() {
        tracing::debug!("a report came after the run had ended");
    }
}

async fn read_messages(mut stdout: ChildStdout, log: File, id: TrialId, reports: mpsc::Sender<Report>) {
    let mut lines = Lines::default();
    let mut stray = StrayOutput { log, written: 0 };
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n_read = match stdout.read(&mut buffer).await {
            Ok(n_read) => n_read,
            Err(error) => {
                tracing::warn!("cannot read the output of trial {id}: {error}");
                0
            }
        };
        let mut messages = Vec::new();
        let mut take = |line: &[u8]| match serde_json::from_slice::<TrialMessage>(line) {
            Ok(message) => messages.push(message),
            Err(_) => stray.write(line),
        };
        if n_read == 0 {
            lines.finish(&mut take);
        } else {
            lines.push(&buffer[..n_read], &mut take);
        }
        for message in messages {
            report(&reports, Report::Message { id: id.clone(), message }).await;
        }
        if n_read == 0 {
            return;
        }
    }
}

/// Cuts a stream into lines of bounded length; a longer line comes in pieces.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, mut bytes: &[u8], take: &mut impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = LINE_LIMIT - self.rest.len();
            let piece = &bytes[..bytes.len().min(room)];
            match piece.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.rest.extend_from_slice(&piece[..end]);
                    bytes = &bytes[end + 1..];
                    take(&self.rest);
                    self.rest.clear();
                }
                None => {
                    self.rest.extend_from_slice(piece);
                    bytes = &bytes[piece.len()..];
                    if self.rest.len() == LINE_LIMIT {
                        take(&self.rest);
                        self.rest.clear();
                    }
                }
            }
        }
    }

    fn finish(&mut self, take: &mut impl FnMut(&[u8])) {
        if !self.rest.is_empty() {
            take(&self.rest);
            self.rest.clear();
        }
    }
}

/// What a process printed that is no message.
#[derive(Debug)]
struct StrayOutput {
    log: File,
    written: usize,
}

impl StrayOutput {
    fn write(&mut self, line: &[u8]) {
        if self.written > STRAY_LIMIT {
            return;
        }
        self.written += line.len() + 1;
        let mut bytes = line.to_vec();
        bytes.push(b'\n');
        if self.written > STRAY_LIMIT {
            bytes.extend_from_slice(b"--- further output on stdout is dropped ---\n");
        }
        if let Err(error) = self.log.write_all(&bytes) {
            tracing::warn!("cannot write a trial's log: {error}");
            self.written = STRAY_LIMIT + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut lines = Lines::default();
        let mut taken = Vec::new();
        for chunk in chunks {
            lines.push(chunk, &mut |line| taken.push(line.to_vec()));
        }
        lines.finish(&mut |line| taken.push(line.to_vec()));
        taken
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let chunk = vec![b'x'; 100_000];
        let pieces = split(&[&chunk, &chunk, &chunk, b"\nshort\n"]);
        assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [LINE_LIMIT, 300_000 - LINE_LIMIT, 5]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn lines_do_not_depend_on_chunks(text in "[ab\n]{0,60}", cut in 0usize..60) {
            let bytes = text.as_bytes();
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let expected: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
            prop_assert_eq!(split(&[head, tail]), expected);
        }
    }
}
