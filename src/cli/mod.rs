//! The command line: one file per command, progress, exit codes. The only part that prints.
//!
//! Data goes to stdout, everything else to stderr. Commands are thin: they read files and arguments, call
//! the parts, and put what comes back before the user. Read [`args`] for what there is, `run` for the way
//! of a sweep.

mod args;
mod compare;
mod console;
mod error;
mod eval;
mod exit;
mod export;
mod facts;
mod inputs;
mod outputs;
mod plan;
mod prepare;
mod progress;
mod report;
mod run;
mod run_data;
mod run_host;
mod show;
mod status;
mod store;
mod stores;
mod sweep;
mod trial;
mod trial_dir;
mod work;

pub use exit::Exit;

use args::{Arguments, Command};
use clap::{CommandFactory, Parser};
use console::Console;
use error::CliError;
use std::process::ExitCode;

/// Runs the command line that the process was started with.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors, and clap knows where each text belongs.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            return match error.print() {
                Ok(()) => exit.into(),
                Err(_broken_pipe) => Exit::Error.into(),
            };
        }
    };
    let console = Console::new(&arguments.shared);
    match dispatch(&arguments, &console) {
        Ok(exit) => exit.into(),
        // Whoever read our output has seen enough.
        Err(CliError::Print(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Ok.into(),
        Err(error) => {
            console.error(&error);
            error.exit().into()
        }
    }
}

fn dispatch(arguments: &Arguments, console: &Console) -> Result<Exit, CliError> {
    let shared = &arguments.shared;
    match &arguments.command {
        Command::Plan(args) => plan::plan(shared, args),
        Command::Run(args) => run::run(shared, args, console),
        Command::Trial(args) => trial::trial(args),
        Command::Status(args) => status::status(shared, args),
        Command::Report(args) => report::report(shared, args),
        Command::Compare(args) => compare::compare(shared, args),
        Command::Eval(args) => eval::eval(shared, args, console),
        Command::Export(args) => export::export(shared, args, console),
        Command::Store(args) => store::store(shared, args, console),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "saesweep", &mut script);
            show::print(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Ok)
        }
    }
}
