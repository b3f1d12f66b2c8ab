//! The exit codes of the program, all of them, and their meaning.

use std::process::ExitCode;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything asked for is done; for `run`: every trial has a result.
    Ok,
    /// Something went wrong; the message says what.
    Error,
    /// The command line or the sweep file is wrong; nothing was started.
    Usage,
    /// Every trial that could has ended, but some failed or diverged.
    SomeFailed,
    /// There is nothing to do.
    NothingToDo,
    /// `trial` stopped on request and left a checkpoint: start it again to continue.
    Stopped,
    /// `run` was interrupted: the same command continues it.
    Interrupted,
}

impl Exit {
    /// The code that the operating system sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Error => 1,
            Self::Usage => 2,
            Self::SomeFailed => 3,
            Self::NothingToDo => 4,
            Self::Stopped => 75,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table that `--help` shows.
pub(super) const HELP: &str = "\
Exit codes:
  0    done; for `run`, every trial has a result
  1    something went wrong; the message says what
  2    the command line or the sweep file is wrong; nothing was started
  3    every trial has ended that could, but some failed or diverged
  4    there is nothing to do
  75   `trial` was asked to stop and left a checkpoint: start it again to continue
  130  `run` was interrupted: the same command continues it

Environment: SAESWEEP_SECTION__KEY sets a setting of the sweep, SAESWEEP_CACHE the cache folder,
SAESWEEP_LOG what is logged (for example `debug`); NO_COLOR is honoured, and so are HF_HOME, HF_TOKEN,
HF_ENDPOINT and HF_HUB_OFFLINE.

Arguments, exit codes, JSON output and the files of a run folder are stable; other output is for people.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_code() {
        for exit in [
            Exit::Ok,
            Exit::Error,
            Exit::Usage,
            Exit::SomeFailed,
            Exit::NothingToDo,
            Exit::Stopped,
            Exit::Interrupted,
        ] {
            let code = format!("  {:<4} ", exit.code());
            assert!(HELP.contains(&code), "{code}");
        }
        assert_eq!(i32::from(Exit::Stopped.code()), crate::sched::EXIT_STOPPED);
    }
}
