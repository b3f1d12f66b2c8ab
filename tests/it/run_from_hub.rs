//! A whole run by hub names: downloaded from a hub on loopback, then again with the hub gone.

use super::{
    hub::{Fault, HubServer},
    tiny_sweep::{TinySweep, assert_same, expect},
};
use polars::prelude::{Column, DataFrame, ParquetWriter};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const TOKEN: &str = "hf_very_secret_token";

fn add_repositories(server: &HubServer, sweep: &TinySweep) {
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/llama"));
    let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let contents = names.map(|name| fs::read(model.join(name)).unwrap());
    let files: Vec<(&str, &[u8])> = names.into_iter().zip(contents.iter().map(Vec::as_slice)).collect();
    server.add("models/org/tiny", "main", &files);

    let text = fs::read_to_string(sweep.path("text.jsonl")).unwrap();
    let rows: Vec<String> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut frame = DataFrame::new(rows.len(), vec![Column::new("text".into(), rows)]).unwrap();
    let mut parquet = Vec::new();
    ParquetWriter::new(&mut parquet).finish(&mut frame).unwrap();
    server.add("datasets/org/words", "main", &[("data/train-00000-of-00001.parquet", &parquet)]);
}

fn run(sweep: &TinySweep, endpoint: &str, offline: bool) -> Command {
    let mut command = sweep.command(&["run", "sweep.toml"]);
    command.env("HF_HOME", sweep.path("hf")).env("HF_ENDPOINT", endpoint).env("HF_TOKEN", TOKEN);
    // The token must stay out of the finest logs too.
    command.env("SAESWEEP_LOG", "trace,ureq_proto::client=trace");
    command.env_remove("HF_HUB_CACHE").env_remove("HF_HUB_OFFLINE");
    if offline {
        command.env("HF_HUB_OFFLINE", "1");
    }
    command
}

/// A sweep by names, and the hub that has what they stand for.
fn sweep_by_names() -> (TinySweep, HubServer) {
    let sweep = TinySweep::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/gpt_neo");
    sweep.edit(model, "org/tiny");
    sweep.edit("\"text.jsonl\"", "\"org/words\"");
    let server = HubServer::start();
    add_repositories(&server, &sweep);
    fs::remove_file(sweep.path("text.jsonl")).unwrap();
    (sweep, server)
}

/// Checks the exit code and that the token was not shown; gives stderr.
fn expect_no_token(output: &Output, code: i32) -> String {
    let (stdout, stderr) = expect(output, code);
    assert!(!stdout.contains(TOKEN) && !stderr.contains(TOKEN), "{stdout}\n{stderr}");
    stderr
}

/// The line with which a command that failed ends.
fn error_line(stderr: &str) -> &str {
    stderr.lines().last().unwrap().strip_prefix("error: ").unwrap_or_else(|| panic!("{stderr}"))
}

#[test]
fn a_run_by_names_and_the_same_run_offline() {
    let (sweep, server) = sweep_by_names();

    // Offline first: what is missing is told, and nothing is started.
    let stderr = expect_no_token(&run(&sweep, &server.url, true).output().unwrap(), 1);
    assert!(stderr.contains("org/tiny"), "{stderr}");
    assert!(!sweep.run_dir().exists());
    // Planning does without, and says so.
    let mut plan = sweep.command(&["plan", "sweep.toml"]);
    let (stdout, _) = expect(&plan.env("HF_HOME", sweep.path("hf")).output().unwrap(), 0);
    assert!(stdout.contains("To be fetched first") && stdout.contains("org/tiny"), "{stdout}");

    let stderr = expect_no_token(&run(&sweep, &server.url, false).output().unwrap(), 0);
    assert!(stderr.contains("downloaded model.safetensors"), "{stderr}");
    let first = sweep.lasting();
    drop(server);

    fs::remove_dir_all(sweep.run_dir()).unwrap();
    fs::remove_dir_all(sweep.path("cache")).unwrap();
    expect_no_token(&run(&sweep, "http://127.0.0.1:9", true).output().unwrap(), 0);
    assert_same(&sweep.lasting(), &first, "offline");
    assert_no_token(&sweep.path(""));
}

#[test]
fn what_the_hub_refuses_is_told_before_anything_starts() {
    let (sweep, server) = sweep_by_names();
    let fails = |parts: &[&str]| {
        let stderr = expect_no_token(&run(&sweep, &server.url, false).output().unwrap(), 1);
        let line = error_line(&stderr);
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        assert!(!sweep.run_dir().exists() && !sweep.path("cache").exists());
    };
    for status in [401, 403] {
        server.refuse("datasets/org/words", status, "GatedRepo");
        let page = format!("{}/datasets/org/words", server.url);
        fails(&[
            "data set `org/words`",
            &format!("HTTP {status}"),
            &format!("licence at {page}"),
            "HF_TOKEN",
        ]);
    }
    sweep.edit("org/words", "org/none");
    fails(&["data set `org/none` does not exist on", &server.url]);
    sweep.edit("org/tiny", "org/none");
    fails(&["model `org/none` does not exist on", "the token in HF_TOKEN has no access"]);
    sweep.edit("org/none", "org/tiny@v9");
    fails(&["model `org/tiny` has no revision `v9`"]);
    assert_no_token(&sweep.path(""));
}

#[test]
fn a_download_that_broke_off_goes_on_in_the_next_run() {
    let (sweep, server) = sweep_by_names();
    // The first connection brings 500 bytes of the first large file, the second finds it gone.
    server.faults(&[Fault::CutAfter(500), Fault::Status(410)]);
    let stderr = expect_no_token(&run(&sweep, &server.url, false).output().unwrap(), 1);
    assert!(error_line(&stderr).ends_with("tokenizer.json answered HTTP 410"), "{stderr}");
    assert!(!sweep.run_dir().exists());

    let before = server.requests().1.len();
    expect_no_token(&run(&sweep, &server.url, false).output().unwrap(), 0);
    let next = server.requests().1[before].to_lowercase();
    assert!(next.contains("range: bytes=500-"), "{next}");
    assert_no_token(&sweep.path(""));
}

/// The token is in no file of the sweep's folder.
fn assert_no_token(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            assert_no_token(&path);
        } else if let Ok(bytes) = fs::read(&path) {
            let found = bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes());
            assert!(!found, "the token is in {}", path.display());
        }
    }
}
