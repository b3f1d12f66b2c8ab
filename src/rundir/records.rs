//! What the trials themselves wrote, read back for tables, reports and `status`.

use super::{RunDir, RunDirError, RunState, TrialDir, TrialState, read_text};
use crate::trial::{RESULT_VERSION, TrialId, TrialJob, TrialResult};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

/// Everything that is known of one trial.
#[derive(Debug, Clone, PartialEq)]
pub struct TrialRecord {
    /// Identity.
    pub id: TrialId,
    /// Its job; `None` while its folder has not been prepared.
    pub job: Option<TrialJob>,
    /// Its verdict, if it has one.
    pub result: Option<TrialResult>,
    /// Its state in the journal; `None` when the journal does not know it.
    pub state: Option<TrialState>,
    /// The lines of `metrics.jsonl`, in order.
    pub curve: Vec<serde_json::Map<String, serde_json::Value>>,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
}

/// Lines of a log that a record keeps.
const LOG_TAIL_LINES: usize = 20;
/// Bytes of a log that are looked at for them.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// Reads the records of `ids`, in that order.
pub fn read_results(
    run: &RunDir,
    ids: &[TrialId],
    state: &RunState,
) -> Result<Vec<TrialRecord>, RunDirError> {
    ids.iter()
        .map(|id| {
            let dir = run.trial(id);
            Ok(TrialRecord {
                id: id.clone(),
                job: read_job(&dir)?,
                result: read_result(&dir)?,
                state: state.trials.get(id).cloned(),
                curve: read_curve(&dir.metrics())?,
                log_tail: tail_lines(&dir.log(), LOG_TAIL_LINES)?,
            })
        })
        .collect()
}

/// A trial's `config.toml`; `None` when there is none yet.
pub fn read_job(dir: &TrialDir) -> Result<Option<TrialJob>, RunDirError> {
    let path = dir.config();
    let Some(text) = read_text(&path)? else { return Ok(None) };
    toml::from_str(&text).map(Some).map_err(|error| RunDirError::Malformed {
        path,
        what: "trial configuration",
        detail: error.to_string().trim().to_owned(),
    })
}

/// A trial's `result.json`; `None` when it has no verdict yet.
pub fn read_result(dir: &TrialDir) -> Result<Option<TrialResult>, RunDirError> {
    let path = dir.result();
    let Some(text) = read_text(&path)? else { return Ok(None) };
    let malformed = |error: serde_json::Error| RunDirError::Malformed {
        path: path.clone(),
        what: "trial result",
        detail: error.to_string(),
    };
    // The version is looked at first: a newer format may have other fields.
    let value: serde_json::Value = serde_json::from_str(&text).map_err(malformed)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let version = u32::try_from(version).unwrap_or(u32::MAX);
    if version > RESULT_VERSION {
        return Err(RunDirError::Version { path, found: version, known: RESULT_VERSION });
    }
    serde_json::from_value(value).map(Some).map_err(malformed)
}

/// The lines of a `metrics.jsonl`. The trial may be writing it, or may have been killed at it, so reading
/// stops at the first line that is not whole.
fn read_curve(path: &Path) -> Result<Vec<serde_json::Map<String, serde_json::Value>>, RunDirError> {
    let text = read_text(path)?.unwrap_or_default();
    Ok(text
        .split_inclusive('\n')
        .map_while(|line| line.ends_with('\n').then(|| serde_json::from_str(line).ok()).flatten())
        .collect())
}

/// The last `n` lines of a text file, however long the file is; none when there is no such file.
pub fn tail_lines(path: &Path, n: usize) -> Result<Vec<String>, RunDirError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RunDirError::io("open", path)(error)),
    };
    let length = file.metadata().map_err(RunDirError::io("read", path))?.len();
    let start = length.saturating_sub(LOG_TAIL_BYTES);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes))
        .map_err(RunDirError::io("read", path))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if start > 0 && lines.len() > 1 {
        // The first line is most likely a part of one.
        lines.remove(0);
    }
    Ok(lines.split_off(lines.len().saturating_sub(n)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn stored_samples_are_read() {
        let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rundir/trial-v1"));
        let dir = TrialDir::new(fixtures);
        let result = read_result(&dir).unwrap().unwrap();
        assert_eq!(result.metrics["l0"], 41.5);
        let job = read_job(&dir).unwrap().unwrap();
        assert_eq!(job.id, result.id);
        assert_eq!(job.config.sae.d_sae, 16384);
        let written = toml::to_string(&job).unwrap();
        assert_eq!(toml::from_str::<TrialJob>(&written).unwrap(), job);
    }

    #[test]
    fn a_newer_result_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let trial = TrialDir::new(dir.path());
        fs::write(trial.result(), "{\"version\": 99, \"novelty\": true}").unwrap();
        assert!(matches!(read_result(&trial), Err(RunDirError::Version { found: 99, .. })));
        fs::write(trial.result(), "{\"version\": 1").unwrap();
        assert!(matches!(read_result(&trial), Err(RunDirError::Malformed { .. })));
    }

    #[test]
    fn a_curve_ends_at_the_first_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"ste").unwrap();
        assert_eq!(read_curve(&path).unwrap().len(), 2);
    }

    #[test]
    fn the_tail_of_a_long_log_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.txt");
        assert_eq!(tail_lines(&path, 3).unwrap(), Vec::<String>::new());
        let text: String = (0..10_000).fold(String::new(), |text, n| text + "line " + &n.to_string() + "\n");
        fs::write(&path, text).unwrap();
        assert_eq!(tail_lines(&path, 2).unwrap(), ["line 9998", "line 9999"]);
    }
}
