//! `saesweep export`: a trial's SAE for other programs.

use super::{
    CliError, Exit,
    args::{self, ExportArgs, Shared},
    console::Console,
    show,
    trial_dir::find_trial,
};
use crate::{
    rundir::{read_job, read_result},
    sae::{self, DICTIONARY_FILE, ExportFormat, ExportInfo, RUNNER_FILE},
    trial::TrialStatus,
};

/// Exports one trial's SAE; prints the folder.
pub(super) fn export(shared: &Shared, args: &ExportArgs, console: &Console) -> Result<Exit, CliError> {
    let dir = find_trial(shared, args.run.as_deref(), &args.trial)?;
    let no_sae = |why: &str| CliError::Usage(format!("trial `{}` has no SAE: {why}", dir.root().display()));
    let job = read_job(&dir)?.ok_or_else(|| no_sae("it has no config.toml"))?;
    let result = read_result(&dir)?.ok_or_else(|| no_sae("it has not ended"))?;
    if result.status != TrialStatus::Done {
        return Err(no_sae(result.reason.as_deref().unwrap_or("it failed")));
    }
    let format = match args.format {
        args::ExportFormat::SaeLens => ExportFormat::SaeLens,
        args::ExportFormat::DictionaryLearning => ExportFormat::DictionaryLearning,
    };
    let info = ExportInfo {
        trial: &job.id,
        store_key: &result.store_key,
        config: &job.config,
        metrics: &result.metrics,
    };
    let files = sae::export(&dir.sae(), &args.to, format, &info, args.force)?;
    console.note(&format!("trial {}: {}", job.id, files.join(", ")));
    if format == ExportFormat::SaeLens && !files.contains(&RUNNER_FILE) {
        console.note(&format!("no {RUNNER_FILE}: its activations are not a language model's"));
    }
    if format == ExportFormat::DictionaryLearning {
        console.note(&format!(
            "dictionary_learning reads ae.pt, a Python pickle, which is not written here; in Python, \
             `torch.save(safetensors.torch.load_file(\"{DICTIONARY_FILE}\"), \"ae.pt\")` makes it"
        ));
    }
    show::print(&format!("{}\n", args.to.display()))?;
    Ok(Exit::Ok)
}
