//! The commands as a user meets them: the real program on a tiny sweep.

use super::tiny_sweep::{TinySweep, assert_same, expect};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_sweep_from_plan_to_report() {
    let sweep = TinySweep::new();
    let (stdout, _) = sweep.expect(&["plan", "sweep.toml"], 0);
    assert!(stdout.contains("tiny: 3 trials (grid), 3_840 training tokens in all"), "{stdout}");
    assert!(!sweep.run_dir().exists() && !sweep.path("cache").exists(), "plan changes nothing");
    let (stdout, _) = sweep.expect(&["plan", "sweep.toml", "--format", "json"], 0);
    let plan = json(&stdout);
    assert_eq!(plan["stores"][0]["width"], 24);

    let (stdout, stderr) = sweep.expect(&["run", "sweep.toml"], 0);
    assert!(
        stdout.contains("Best trials by ce_loss_score") && stdout.contains("Report: results/tiny/report.md")
    );
    assert!(stderr.contains("3 trials, 3 to run") && stderr.contains("[3/3] done"), "{stderr}");
    let ids: Vec<&str> =
        plan["trials"].as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap()).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    assert_eq!(sweep.trials().into_keys().collect::<Vec<_>>(), sorted, "plan and run agree");

    // Again: nothing runs, everything stays.
    let before = sweep.lasting();
    let (stdout, stderr) = sweep.expect(&["run", "sweep.toml", "--format", "json"], 0);
    assert!(stderr.contains("3 trials, 3 ended before\n"), "{stderr}");
    assert_eq!(json(&stdout)["counts"]["done"], 3);
    assert_same(&sweep.lasting(), &before, "after a second run");

    // The report comes from the run folder alone.
    for gone in ["report.md", "tables", "figures"] {
        let path = sweep.run_dir().join(gone);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    fs::remove_file(sweep.file()).unwrap();
    fs::remove_dir_all(sweep.path("cache")).unwrap();
    sweep.expect(&["report", "tiny"], 0);
    assert_same(&sweep.lasting(), &before, "after the report was rebuilt");

    let (stdout, _) = sweep.expect(&["status"], 0);
    assert!(stdout.contains("results/tiny") && stdout.contains("complete"), "{stdout}");
    let (stdout, _) = sweep.expect(&["status", "tiny", "--format", "json"], 0);
    assert_eq!(json(&stdout)["trials"][0]["status"], "done");
    let (stdout, _) = sweep.expect(&["compare", &ids[0][..6], ids[2]], 0);
    assert!(stdout.contains("sae.l1_coefficient") && !stdout.contains("train.lr "), "{stdout}");
    let (stdout, _) = sweep.expect(&["compare", ids[0], ids[1], "--format", "json"], 0);
    assert_eq!(json(&stdout)[1]["differing_settings"]["sae.l1_coefficient"], 2.0);
}

#[test]
fn an_edited_sweep_adds_trials_and_shows_what_left() {
    let sweep = TinySweep::new();
    sweep.expect(&["run", "sweep.toml"], 0);
    let before = sweep.trials();
    sweep.edit("[0.5, 2.0, 8.0]", "[2.0, 8.0, 4.0]");
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 0);
    assert!(stderr.contains("3 trials, 2 ended before, 1 to run"), "{stderr}");
    assert!(stderr.contains("1 trial of earlier runs left the plan"), "{stderr}");
    let after = sweep.trials();
    assert_eq!(after.len(), 4);
    assert!(before.keys().all(|id| after.contains_key(id)));

    // Other data is another store, so every result is stale.
    let text = fs::read_to_string(sweep.path("text.jsonl")).unwrap();
    fs::write(sweep.path("text.jsonl"), text.replace("cat", "dog")).unwrap();
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 0);
    assert!(stderr.contains("runs anew: its activation store is another one now"), "{stderr}");
    assert!(stderr.contains("3 trials, 3 to run"), "{stderr}");
}

#[test]
fn a_diverged_trial_is_told_and_runs_again_only_when_asked() {
    let sweep = TinySweep::new();
    sweep.edit("lr = 1e-3", "lr = 1e30");
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 3);
    assert!(stderr.contains("DIVERGED") && stderr.contains("--retry-failed"), "{stderr}");
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 3);
    assert!(stderr.contains("3 trials, 3 ended before\n"), "{stderr}");
    let (_, stderr) = sweep.expect(&["run", "sweep.toml", "--retry-failed"], 3);
    assert!(stderr.contains("3 trials, 3 to run"), "{stderr}");
    let report = fs::read_to_string(sweep.run_dir().join("report.md")).unwrap();
    assert!(report.contains("diverged"), "{report}");
}

#[test]
fn what_is_wrong_is_told_before_anything_starts() {
    let sweep = TinySweep::new();
    sweep.edit("blocks.1.hook_mlp_out", "blocks.9.hook_mlp_out");
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 2);
    assert!(stderr.contains("blocks.9.hook_mlp_out"), "{stderr}");
    sweep.edit("blocks.9.hook_mlp_out", "blocks.1.hook_mlp_out");
    if !cfg!(feature = "cuda") {
        sweep.edit("cpu_slots = 2", "use = [\"cuda\"]");
        let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 2);
        assert!(stderr.contains("cargo build --release --features cuda"), "{stderr}");
        sweep.edit("use = [\"cuda\"]", "cpu_slots = 2");
    }
    sweep.edit("cpu_slots = 2", "cpu_slot = 2");
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 2);
    assert!(stderr.contains("cpu_slots"), "{stderr}");
    assert!(!sweep.run_dir().exists());
    let (_, stderr) = sweep.expect(&["run", "nowhere.toml"], 1);
    assert!(stderr.contains("nowhere.toml"), "{stderr}");
    let (_, stderr) = sweep.expect(&["status", "nothing"], 2);
    assert!(stderr.contains("no run `nothing`"), "{stderr}");
    sweep.expect(&["frobnicate"], 2);
}

#[test]
fn stores_are_built_listed_checked_and_removed() {
    let sweep = TinySweep::new();
    let (stdout, _) = sweep.expect(&["store", "build", "sweep.toml"], 0);
    let key = stdout.trim().to_owned();
    let (stdout, _) = sweep.expect(&["store", "ls", "--format", "json"], 0);
    assert_eq!(json(&stdout)[0]["key"], Value::String(key.clone()));
    sweep.expect(&["store", "verify", &key], 0);
    let shard = sweep.path("cache/stores").join(&key).join("train-00000.bin");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[100] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let (stdout, _) = sweep.expect(&["store", "verify"], 1);
    assert!(stdout.contains("train-00000.bin"), "{stdout}");
    sweep.expect(&["store", "rm", &key], 0);
    let (stdout, _) = sweep.expect(&["store", "ls"], 0);
    assert!(!stdout.contains(&key), "{stdout}");
    sweep.expect(&["store", "verify", &key], 2);
}

/// A run that will not end by itself, once its trials are at work.
fn start_long_run(sweep: &TinySweep) -> (Child, BufReader<std::process::ChildStderr>) {
    sweep.edit("tokens = 1280", "tokens = 100_000_000");
    start(sweep, |folder| folder.join("metrics.jsonl").exists())
}

/// Starts a run and waits until two of its trials' folders are as wanted.
fn start(
    sweep: &TinySweep,
    is_ready: impl Fn(&Path) -> bool,
) -> (Child, BufReader<std::process::ChildStderr>) {
    start_as(sweep, sweep.command(&["run", "sweep.toml"]), is_ready)
}

fn start_as(
    sweep: &TinySweep,
    mut command: Command,
    is_ready: impl Fn(&Path) -> bool,
) -> (Child, BufReader<std::process::ChildStderr>) {
    // A shell starts what it puts in the background with interrupts ignored, and saesweep honours that; the tests
    // may have been started so themselves.
    let heed_interrupts = || {
        // SAFETY: `signal` may be called between fork and exec, and the default is no handler of ours.
        if unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(heed_interrupts) };
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("to run") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the run ended");
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while sweep.trials().values().filter(|folder| is_ready(folder)).count() < 2 {
        assert!(std::time::Instant::now() < deadline, "the trials do not start");
        std::thread::yield_now();
    }
    (child, stderr)
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn an_interrupted_run_leaves_checkpoints_and_says_how_to_go_on() {
    let sweep = TinySweep::new();
    let (mut child, mut stderr) = start_long_run(&sweep);

    // While it runs: another coordinator is refused, and anybody may look.
    let (_, refused) = sweep.expect(&["run", "sweep.toml"], 1);
    assert!(refused.contains(&format!("in use by process {}", child.id())), "{refused}");
    let (stdout, _) = sweep.expect(&["status", "tiny"], 0);
    assert!(
        stdout.contains(&format!("running, process {}", child.id())) && stdout.contains("2 running"),
        "{stdout}"
    );
    let (stdout, _) = sweep.expect(&["store", "ls", "--format", "json"], 0);
    assert_eq!(json(&stdout)[0]["in_use"], true);

    signal(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("interrupted: 3 trials to go; continue with `saesweep run sweep.toml`"), "{rest}");
    let with_checkpoint = sweep.trials().values().filter(|folder| folder.join("checkpoint").exists()).count();
    assert_eq!(with_checkpoint, 2);
    let report = fs::read_to_string(sweep.run_dir().join("report.md")).unwrap();
    assert!(report.contains("interrupted"), "{report}");
    let (stdout, _) = sweep.expect(&["status", "tiny"], 0);
    assert!(stdout.contains("stopped; `saesweep run` continues it"), "{stdout}");

    // The same command goes on from there.
    let continues = |folder: &Path| {
        fs::read_to_string(folder.join("log.txt")).is_ok_and(|log| log.contains("continues at step"))
    };
    let (mut child, stderr) = start(&sweep, continues);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(stderr);
}

#[test]
fn two_interrupts_kill_at_once() {
    let sweep = TinySweep::new();
    let (mut child, stderr) = start_long_run(&sweep);
    signal(&child, rustix::process::Signal::INT);
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stderr);
    let (stdout, _) = sweep.expect(&["status", "tiny", "--format", "json"], 0);
    assert_eq!(json(&stdout)["complete"], false);
}

#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let sweep = TinySweep::new();
    sweep.edit("tokens = 1280", "tokens = 100_000_000");
    let mut command = Command::new("/bin/sh");
    command.args([
        "-c",
        "trap '' HUP; exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_saesweep"),
        "run",
        "sweep.toml",
    ]);
    command.current_dir(sweep.path("")).env("SAESWEEP_CACHE", sweep.path("cache"));
    let (mut child, mut stderr) = start_as(&sweep, command, |folder| folder.join("metrics.jsonl").exists());
    signal(&child, rustix::process::Signal::HUP);
    // Had the hangup counted, this would be the second request, and trials would be killed.
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("stopping") && !rest.contains("killing"), "{rest}");
}

#[test]
fn a_trial_can_be_run_by_hand() {
    let sweep = TinySweep::new();
    sweep.expect(&["run", "sweep.toml"], 0);
    let expected = sweep.lasting();
    let (id, folder) = sweep.trials().into_iter().next().unwrap();
    fs::remove_file(folder.join("result.json")).unwrap();
    fs::remove_dir_all(folder.join("sae")).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/gpt_neo");
    let folder = folder.display().to_string();
    let args = ["trial", &folder, "--threads", "2", "--stores", "cache/stores", "--model", model];
    let (stdout, _) = expect(&sweep.output(&args), 0);
    let last = json(stdout.lines().last().unwrap());
    assert_eq!((&last["message"], &last["result"]["id"]), (&"ended".into(), &id.into()));
    // With another number of threads, too.
    assert_same(&sweep.lasting(), &expected, "after a trial by hand");
    let (stdout, _) = expect(&sweep.output(&args), 0);
    assert_eq!(stdout.lines().count(), 1, "a trial with a result does nothing: {stdout}");
}

/// A terminal that is gone, a coordinator that was killed: nobody listens, and the work is done all the same.
#[test]
fn closed_outputs_stop_neither_a_run_nor_a_trial() {
    let (whole, sweep) = (TinySweep::new(), TinySweep::new());
    whole.expect(&["run", "sweep.toml"], 0);
    let unheard = |args: &[&str]| {
        let mut command = sweep.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        child.wait().unwrap().code()
    };
    assert_eq!(unheard(&["run", "sweep.toml", "-vv"]), Some(0));
    assert_same(&sweep.lasting(), &whole.lasting(), "after a run that nobody heard");

    let (_, folder) = sweep.trials().into_iter().next().unwrap();
    fs::remove_file(folder.join("result.json")).unwrap();
    fs::remove_dir_all(folder.join("sae")).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/gpt_neo");
    let folder = folder.display().to_string();
    let code = unheard(&["trial", &folder, "--stores", "cache/stores", "--model", model, "-vv"]);
    assert_eq!(code, Some(0));
    assert_same(&sweep.lasting(), &whole.lasting(), "after a trial that nobody heard");
}

#[test]
fn completions_and_defaults_are_printed() {
    let sweep = TinySweep::new();
    let (stdout, _) = sweep.expect(&["completions", "bash"], 0);
    assert!(stdout.contains("_saesweep"), "{stdout}");
    let (stdout, _) = sweep.expect(&["plan", "--defaults"], 0);
    assert!(stdout.contains("[train]"), "{stdout}");
    let (stdout, _) = sweep.expect(&["--help"], 0);
    assert!(stdout.contains("Exit codes:"), "{stdout}");
}
