//! Fault points: named places in the code where a test can have the process die by SIGKILL.
//!
//! A file system can be left in any of the states between two system calls, and a test that kills at
//! random times hits the interesting ones seldom. So the code that writes lasting files calls [`hit`] between
//! its steps. Without the hidden variable [`KILL_AT`] a call costs one atomic read.

use std::{
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Environment variable `<role>:<n>:<marker>`: the first process of that role that reaches its `n`th fault
/// point (counted from 1) writes the point's name into the file `marker` and dies. Once the marker exists,
/// nobody dies any more, so a test can let the run heal.
pub const KILL_AT: &str = "SAESWEEP_TEST_KILL_AT";

/// What the process is, as fault points see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs a sweep.
    Coordinator,
    /// Runs one trial.
    Trial,
}

struct Armed {
    nth: u64,
    marker: PathBuf,
    seen: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Says what this process is; arms the fault points if [`KILL_AT`] names this role. Only the first call counts.
pub fn set_role(role: Role) {
    ARMED.get_or_init(|| {
        let value = std::env::var(KILL_AT).ok()?;
        let mut parts = value.splitn(3, ':');
        let wanted = match parts.next()? {
            "coordinator" => Role::Coordinator,
            "trial" => Role::Trial,
            _ => return None,
        };
        let nth = parts.next()?.parse().ok()?;
        let marker = PathBuf::from(parts.next()?);
        (wanted == role && !marker.exists()).then_some(Armed { nth, marker, seen: AtomicU64::new(0) })
    });
}

/// Whether a fault point can fire in this process: writers then take smaller steps, with points between.
pub fn armed() -> bool {
    matches!(ARMED.get(), Some(Some(_)))
}

/// A fault point.
pub fn hit(name: &str) {
    let Some(Some(armed)) = ARMED.get() else { return };
    if armed.seen.fetch_add(1, Ordering::Relaxed) + 1 != armed.nth {
        return;
    }
    // Of several processes of one role only the one that creates the marker dies.
    let created = std::fs::OpenOptions::new().write(true).create_new(true).open(&armed.marker);
    let Ok(mut marker) = created else { return };
    let written = std::io::Write::write_all(&mut marker, name.as_bytes());
    if written.is_ok()
        && rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).is_ok()
    {
        // SIGKILL is on its way; nothing after the fault point may run.
        loop {
            std::thread::park();
        }
    }
}
