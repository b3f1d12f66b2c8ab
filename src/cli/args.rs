//! What can be typed.

use crate::slot::SlotId;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Hyperparameter sweeps for sparse autoencoders: one TOML file, one command, one report.
#[derive(Debug, Parser)]
#[command(name = "saesweep", version, about, after_help = super::exit::HELP, max_term_width = 110)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) shared: Shared,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(super) struct Shared {
    /// Folder of the run folders.
    #[arg(long, global = true, value_name = "DIR", default_value = "results")]
    pub(super) results: PathBuf,
    /// Cache folder; activation stores lie in its `stores` [default: the user's cache folder].
    #[arg(long, global = true, value_name = "DIR", env = "SAESWEEP_CACHE")]
    pub(super) cache: Option<PathBuf>,
    /// Print nothing but results and errors.
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Log more; twice for even more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what `run` would do; changes nothing.
    Plan(PlanArgs),
    /// Run a sweep, or continue it; ends with the report.
    Run(RunArgs),
    /// Show where a run stands, also while it goes on.
    Status(StatusArgs),
    /// Rebuild tables and report of a run.
    Report(ReportArgs),
    /// Show how trials differ: settings and metrics side by side.
    Compare(CompareArgs),
    /// Evaluate SAEs from anywhere on a store, beside the trials of a run.
    Eval(EvalArgs),
    /// Write a trial's SAE for SAELens or dictionary_learning.
    Export(ExportArgs),
    /// Look after the activation stores.
    Store(StoreArgs),
    /// Run one trial; what `run` starts for each.
    Trial(TrialArgs),
    /// Print a completion script.
    Completions {
        /// Of which shell.
        shell: clap_complete::Shell,
    },
}

/// How tables are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Table,
    /// For programs: one JSON value.
    Json,
}

/// A sweep and its overrides.
#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// The sweep file.
    pub(super) sweep: PathBuf,
    #[command(flatten)]
    pub(super) overrides: Overrides,
}

/// `--set`.
#[derive(Debug, Args)]
pub(super) struct Overrides {
    /// Set a setting, above the file and the environment, for example `--set train.lr=1e-4`; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
}

/// `saesweep plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The sweep file.
    #[arg(required_unless_present = "defaults")]
    pub(super) sweep: Option<PathBuf>,
    #[command(flatten)]
    pub(super) overrides: Overrides,
    /// Print every setting with its default and its meaning instead.
    #[arg(long)]
    pub(super) defaults: bool,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub(super) format: Format,
}

/// `saesweep run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) sweep: SweepArgs,
    /// Run failed and diverged trials again.
    #[arg(long)]
    pub(super) retry_failed: bool,
    /// How to print the best trials at the end.
    #[arg(long, value_enum, default_value = "table")]
    pub(super) format: Format,
}

/// `saesweep status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Name of a sweep under the results folder, or a run folder; without it all runs are listed.
    pub(super) run: Option<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub(super) format: Format,
}

/// `saesweep report`.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Name of a sweep under the results folder, or a run folder.
    pub(super) run: PathBuf,
    /// A minijinja template to use instead of the run's own.
    #[arg(long, value_name = "FILE")]
    pub(super) template: Option<PathBuf>,
}

/// `saesweep compare`.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Trials: ids, their first digits, or trial folders.
    #[arg(required = true, num_args = 2.., value_name = "TRIAL")]
    pub(super) trials: Vec<String>,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub(super) format: Format,
}

/// `saesweep eval`.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Folders in SAELens' format: cfg.json and sae_weights.safetensors of a standard, gated, topk, abstopk or
    /// jumprelu SAE; the form from before SAELens 6 is read too.
    #[arg(required = true, value_name = "SAE")]
    pub(super) saes: Vec<PathBuf>,
    /// Evaluate on the store of this run and show its trials too: a name under the results folder, or a run
    /// folder.
    #[arg(long, value_name = "RUN", required_unless_present = "store")]
    pub(super) run: Option<PathBuf>,
    /// Key of the store, where there is no run or it has several.
    #[arg(long, value_name = "KEY")]
    pub(super) store: Option<String>,
    /// Folder of the stores, where it is not the cache's.
    #[arg(long, value_name = "DIR")]
    pub(super) stores: Option<PathBuf>,
    /// The language model that the store is of: its folder or file, or its name on the hub [default: the
    /// store's own words for it].
    #[arg(long, value_name = "MODEL")]
    pub(super) model: Option<String>,
    /// Whether special tokens (BOS, EOS, PAD …) are left out [default: as the run's trials did, else false].
    #[arg(long, value_name = "true|false")]
    pub(super) exclude_special_tokens: Option<bool>,
    /// Threads to use, 0 for all cores; they change no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) threads: usize,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub(super) format: Format,
}

/// `saesweep export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The trial: its id, its first digits, or its folder.
    pub(super) trial: String,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    pub(super) to: PathBuf,
    /// The run that the trial is of, where its id alone does not say: a name under the results folder, or a
    /// run folder.
    #[arg(long, value_name = "RUN")]
    pub(super) run: Option<PathBuf>,
    /// For which program.
    #[arg(long, value_enum, default_value = "sae-lens")]
    pub(super) format: ExportFormat,
    /// Replace an earlier export.
    #[arg(long)]
    pub(super) force: bool,
}

/// The program that an export is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ExportFormat {
    /// cfg.json, sae_weights.safetensors, sparsity.safetensors and runner_cfg.json, for
    /// `SAE.load_from_disk(DIR)`.
    SaeLens,
    /// config.json and ae.safetensors, with the decoder as (d, F). dictionary_learning itself reads a Python
    /// pickle, which is not written here; Python makes it with `torch.save(load_file("ae.safetensors"),
    /// "ae.pt")`.
    DictionaryLearning,
}

/// `saesweep store`.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    /// Folder of the stores, where it is not the cache's.
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) stores: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: StoreCommand,
}

/// What can be done with stores.
#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Build the stores that a sweep needs.
    Build(SweepArgs),
    /// List the stores.
    Ls {
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Check every byte of stores against its checksum.
    Verify {
        /// Which; all without any.
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// Remove stores; one that is in use is refused.
    Rm {
        /// Which.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

/// `saesweep trial`.
#[derive(Debug, Args)]
pub(super) struct TrialArgs {
    /// The trial's folder, with its `config.toml`.
    pub(super) folder: PathBuf,
    /// Where it runs.
    #[arg(long, default_value = "cpu:0")]
    pub(super) slot: SlotId,
    /// Threads it may use.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) threads: usize,
    /// Folder of the activation stores.
    #[arg(long, value_name = "DIR")]
    pub(super) stores: PathBuf,
    /// Folder or file of the language model, where the activations come from one.
    #[arg(long, value_name = "PATH")]
    pub(super) model: Option<PathBuf>,
    /// Folder of the SAE that it starts from, where it starts from one.
    #[arg(long, value_name = "DIR")]
    pub(super) init: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn shared_options_stand_anywhere() {
        let arguments = Arguments::try_parse_from([
            "saesweep",
            "run",
            "s.toml",
            "--results",
            "r",
            "--set",
            "a.b=1",
            "-q",
        ])
        .unwrap();
        assert_eq!(arguments.shared.results, PathBuf::from("r"));
        assert!(arguments.shared.quiet);
        let Command::Run(args) = arguments.command else { panic!() };
        assert_eq!(args.sweep.overrides.set, ["a.b=1"]);
    }

    #[test]
    fn plan_needs_a_sweep_or_defaults() {
        assert!(Arguments::try_parse_from(["saesweep", "plan"]).is_err());
        assert!(Arguments::try_parse_from(["saesweep", "plan", "--defaults"]).is_ok());
    }
}
