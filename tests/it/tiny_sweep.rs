//! A sweep that takes a second, run by the real program: the smallest language model there is, made-up
//! sentences, a few trials with checkpoints every few steps.

use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Columns of `trials.csv` and fields of `result.json` that tell of time and place.
const TIMING_COLUMNS: [&str; 4] = ["attempts", "slot", "secs", "tokens_per_sec"];

/// A folder with a sweep file, its data, its cache and its results.
pub(crate) struct TinySweep {
    dir: tempfile::TempDir,
}

/// The sweep file: three trials.
const SWEEP: &str = r#"
[sweep]
name = "tiny"
strategy = "grid"

[model]
name = "MODEL"
hook = "blocks.1.hook_mlp_out"

[data]
dataset = "text.jsonl"
context_size = 16
eval_fraction = 0.1
eval_max_tokens = 128

[store]
tokens = 1024
shuffle_buffer_rows = 512

[sae]
d_sae = 48
normalize_activations = "expected_average_only_in"

[train]
tokens = 1280
batch_size = 32
lr = 1e-3
dead_feature_window = 10
feature_sampling_window = 16

[run]
log_every_steps = 5
checkpoint_every_steps = 8
retries = 1

[devices]
cpu_slots = 2

[axes]
sae.l1_coefficient = [0.5, 2.0, 8.0]
"#;

impl TinySweep {
    /// Makes the folder.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/gpt_neo");
        fs::write(dir.path().join("sweep.toml"), SWEEP.replace("MODEL", model)).unwrap();
        let words = ["the", "a", "cat", "dog", "sun", "sat", "ran", "saw", "on", "under", "it", "red", "big"];
        let mut text = String::new();
        let mut state = 1usize;
        for _ in 0..80 {
            let mut sentence = Vec::new();
            for _ in 0..30 {
                state = (state * 1103 + 12345) % 65536;
                sentence.push(words[state / 7 % words.len()]);
            }
            text += &serde_json::json!({ "text": sentence.join(" ") }).to_string();
            text += "\n";
        }
        fs::write(dir.path().join("text.jsonl"), text).unwrap();
        Self { dir }
    }

    /// The sweep file.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("sweep.toml")
    }

    /// Changes the sweep file.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.file()).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(self.file(), text.replace(from, to)).unwrap();
    }

    /// The run folder.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("results/tiny")
    }

    /// A path in the folder of everything.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program, with arguments, results and cache of this folder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_with_cache(args, &self.path("cache"))
    }

    /// The same with a cache elsewhere.
    pub(crate) fn command_with_cache(&self, args: &[&str], cache: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_saesweep"));
        command.args(args).current_dir(self.dir.path()).env("SAESWEEP_CACHE", cache).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the program, which must end with that exit code; gives its stdout and stderr.
    pub(crate) fn expect(&self, args: &[&str], code: i32) -> (String, String) {
        expect(&self.output(args), code)
    }

    /// Folders of the trials, by id.
    pub(crate) fn trials(&self) -> BTreeMap<String, PathBuf> {
        let entries = fs::read_dir(self.run_dir().join("trials")).unwrap();
        entries
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
            .collect()
    }

    /// Everything that must not depend on what happened on the way, by name.
    pub(crate) fn lasting(&self) -> BTreeMap<String, Vec<u8>> {
        let mut lasting = BTreeMap::new();
        let tables = self.run_dir().join("tables");
        lasting.insert("trials.csv".to_owned(), without_timing(&tables.join("trials.csv")));
        for name in ["frontier.csv", "curves.parquet"] {
            lasting.insert(name.to_owned(), fs::read(tables.join(name)).unwrap());
        }
        for (id, folder) in self.trials() {
            let mut files: Vec<PathBuf> = vec![folder.join("config.toml"), folder.join("metrics.jsonl")];
            files.extend(fs::read_dir(folder.join("sae")).unwrap().map(|entry| entry.unwrap().path()));
            for file in files {
                let name = format!("{id}/{}", file.file_name().unwrap().to_str().unwrap());
                lasting.insert(name, fs::read(file).unwrap());
            }
            let mut result: Value =
                serde_json::from_slice(&fs::read(folder.join("result.json")).unwrap()).unwrap();
            result.as_object_mut().unwrap().remove("timing").unwrap();
            lasting.insert(format!("{id}/result.json"), result.to_string().into_bytes());
            for left in ["checkpoint", "checkpoint.new", "checkpoint.old", "sae.new", "sae.old"] {
                assert!(!folder.join(left).exists(), "{id} still has {left}");
            }
        }
        lasting
    }
}

/// Compares what two runs left.
pub(crate) fn assert_same(
    found: &BTreeMap<String, Vec<u8>>,
    expected: &BTreeMap<String, Vec<u8>>,
    when: &str,
) {
    let names = |lasting: &BTreeMap<String, Vec<u8>>| lasting.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{when}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{name} differs {when}");
    }
}

/// Checks the exit code; gives stdout and stderr.
pub(crate) fn expect(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{}\nstdout:\n{stdout}\nstderr:\n{stderr}", output.status);
    (stdout, stderr)
}

fn without_timing(path: &Path) -> Vec<u8> {
    let text = fs::read_to_string(path).unwrap();
    let header: Vec<&str> = text.lines().next().unwrap().split(',').collect();
    let dropped: Vec<usize> = TIMING_COLUMNS
        .iter()
        .map(|column| header.iter().position(|name| name == column).expect("a timing column"))
        .collect();
    // No cell of this sweep has a comma in it; a row that did would have too many cells.
    let mut kept = String::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(cells.len(), header.len(), "{line}");
        let cells = cells.iter().enumerate().filter(|(idx, _)| !dropped.contains(idx));
        kept += &cells.map(|(_, cell)| *cell).collect::<Vec<_>>().join(",");
        kept += "\n";
    }
    kept.into_bytes()
}
