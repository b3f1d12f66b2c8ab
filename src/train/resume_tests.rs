//! Tests of the loop: whatever interrupts it, the weights and `metrics.jsonl` come out as if nothing had.

use super::{
    CHECKPOINT_FOLDER, METRICS_FILE, Trained,
    device::Backend,
    remove_checkpoint,
    run::{Hooks, Source, TrainError, TrainOutcome, run},
};
use crate::{
    kernels::Pool,
    sae::{self, Normalizer},
    trial::{Architecture, SaeConfig, TrialJob},
};
use candle_core::Device;
use serde_json::json;
use std::{
    cell::Cell,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

pub(super) const D: usize = 6;
pub(super) const STEPS: u64 = 20;

pub(super) fn job() -> TrialJob {
    serde_json::from_value(json!({
        "id": "0123456789ab", "store_key": "0123456789abcdef",
        "run": {
            "retries": 1, "on_failure": "continue", "log_every_steps": 3, "checkpoint_every_steps": 4,
            "checkpoint_every_minutes": 0.0, "grace_secs": 1.0
        },
        "model": { "name": "m", "hook": "blocks.0.hook_mlp_out" },
        "data": {
            "dataset": "d", "column": "", "context_size": 16, "prepend_bos": true,
            "sequence_separator_token": "bos", "disable_concat_sequences": false, "eval_fraction": 0.02,
            "eval_max_tokens": 64
        },
        "store": { "tokens": 640, "dtype": "float32", "shuffle_buffer_rows": 64, "shuffle_seed": 0 },
        "sae": {
            "architecture": "standard", "d_sae": 10, "apply_b_dec_to_input": true,
            "normalize_activations": "none", "decoder_init_norm": 0.1, "l1_coefficient": 3.0, "lp_norm": 1.0,
            "l1_warm_up_steps": 5
        },
        "train": {
            "tokens": STEPS * 8, "batch_size": 8, "lr": 0.01, "lr_end": 1e-4, "lr_scheduler_name": "constant",
            "lr_warm_up_steps": 2, "lr_decay_steps": 5, "n_restart_cycles": 1, "adam_beta1": 0.9,
            "adam_beta2": 0.999, "seed": 1, "data_seed": 1, "dead_feature_window": 3,
            "feature_sampling_window": 7
        },
        "eval": { "exclude_special_tokens": false }
    }))
    .unwrap()
}

pub(super) fn batch(step: u64, out: &mut [f32]) {
    for (i, x) in out.iter_mut().enumerate() {
        let at = (step as usize * 131 + i * 37) % 101;
        *x = (at as f32 / 30.0 - 1.5) * (1.0 + (i % D) as f32 / 3.0);
    }
}

pub(super) fn jumprelu_sae() -> SaeConfig {
    serde_json::from_value(json!({
        "architecture": "jumprelu", "d_sae": 10, "apply_b_dec_to_input": true,
        "normalize_activations": "none", "decoder_init_norm": 0.1, "jumprelu_init_threshold": 0.1,
        "jumprelu_bandwidth": 0.5, "jumprelu_sparsity_loss_mode": "step", "l0_coefficient": 0.1,
        "l0_warm_up_steps": 5, "pre_act_loss_coefficient": 0.01, "jumprelu_tanh_scale": 4.0,
        "jumprelu_ste_to_input": true, "target_l0": 0.0
    }))
    .unwrap()
}

pub(super) fn matryoshka_sae() -> SaeConfig {
    let architecture = Architecture::MatryoshkaBatchTopK {
        k: 2.0,
        topk_threshold_lr: 0.1,
        aux_loss_coefficient: 1.0,
        rescale_acts_by_decoder_norm: true,
        matryoshka_widths: vec![3, 5, 10],
        use_matryoshka_aux_loss: true,
    };
    SaeConfig { architecture, ..topk_sae() }
}

pub(super) fn gated_sae() -> SaeConfig {
    let architecture = Architecture::Gated { l1_coefficient: 0.5, l1_warm_up_steps: 3 };
    SaeConfig { architecture, ..topk_sae() }
}

fn matching_pursuit_sae() -> SaeConfig {
    let architecture = Architecture::MatchingPursuit {
        residual_threshold: 0.1,
        max_iterations: 0,
        stop_on_duplicate_support: true,
    };
    SaeConfig { architecture, decoder_init_norm: 1.0, ..topk_sae() }
}

pub(super) fn batch_topk_sae() -> SaeConfig {
    let architecture = Architecture::BatchTopK {
        k: 1.7,
        topk_threshold_lr: 0.1,
        aux_loss_coefficient: 1.0,
        rescale_acts_by_decoder_norm: true,
    };
    SaeConfig { architecture, ..topk_sae() }
}

pub(super) fn topk_sae() -> SaeConfig {
    serde_json::from_value(json!({
        "architecture": "topk", "d_sae": 10, "apply_b_dec_to_input": false, "normalize_activations": "none",
        "decoder_init_norm": 0.1, "k": 2, "aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": true
    }))
    .unwrap()
}

/// What a run is told, and what it reported.
pub(super) struct Call<'a> {
    folder: &'a Path,
    job: &'a TrialJob,
    stop_at: Option<u64>,
    die_at: Option<u64>,
    break_batch: Option<(u64, f32)>,
    pub(super) from_step: u64,
    pub(super) backend: Backend,
}

impl<'a> Call<'a> {
    pub(super) fn new(folder: &'a Path, job: &'a TrialJob) -> Self {
        Self {
            folder,
            job,
            stop_at: None,
            die_at: None,
            break_batch: None,
            from_step: 0,
            backend: Backend::Kernels,
        }
    }

    fn run(&mut self) -> Result<TrainOutcome, TrainError> {
        let done = Cell::new(0);
        let (stop_at, die_at, break_batch) = (self.stop_at, self.die_at, self.break_batch);
        let read = |step: u64, out: &mut [f32]| {
            batch(step, out);
            if let Some((at, value)) = break_batch
                && at == step
            {
                out[5] = value;
            }
            done.set(step);
            Ok(())
        };
        let from_step = &mut self.from_step;
        run(
            self.folder,
            self.job,
            Source {
                start: sae::init(&self.job.config.sae, D, self.job.config.train.seed).into(),
                normalizer: Normalizer::Scale(0.7),
                output: None,
                read: &read,
            },
            &Pool::new(1),
            &self.backend,
            Hooks {
                on_start: &mut |step| {
                    *from_step = step;
                    done.set(step);
                },
                on_log: &mut |_| {},
                should_stop: &|| {
                    if die_at.is_some_and(|at| done.get() + 1 >= at) {
                        panic!("killed");
                    }
                    stop_at.is_some_and(|at| done.get() + 1 >= at)
                },
                // A minute a step.
                now_secs: &|| done.get() as f64 * 60.0,
            },
        )
    }

    /// Runs until it dies as a killed process does: nothing is tidied up.
    pub(super) fn run_until_killed(&mut self, at: u64) {
        self.die_at = Some(at);
        assert!(catch_unwind(AssertUnwindSafe(|| self.run())).is_err());
        self.die_at = None;
    }

    pub(super) fn finish(&mut self) -> (Trained, Vec<u8>) {
        let outcome = self.run().unwrap();
        let TrainOutcome::Finished { trained, steps, from_step, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!((steps, from_step), (STEPS, self.from_step));
        (*trained, fs::read(self.folder.join(METRICS_FILE)).unwrap())
    }
}

pub(super) fn undisturbed(job: &TrialJob) -> (Trained, Vec<u8>) {
    let temp = tempfile::tempdir().unwrap();
    Call::new(temp.path(), job).finish()
}

#[test]
fn a_killed_run_continues_to_the_same_bits() {
    for sae in [
        job().config.sae,
        topk_sae(),
        batch_topk_sae(),
        matryoshka_sae(),
        jumprelu_sae(),
        gated_sae(),
        matching_pursuit_sae(),
    ] {
        let mut job = job();
        job.config.sae = sae;
        let whole = undisturbed(&job);
        for at in 1..STEPS {
            let temp = tempfile::tempdir().unwrap();
            let mut call = Call::new(temp.path(), &job);
            call.run_until_killed(at);
            assert_eq!(call.finish(), whole, "killed at {at}");
            assert_eq!(call.from_step, at / 4 * 4, "killed at {at}");
        }
    }
}

#[test]
fn a_run_killed_again_and_again_does_too() {
    let job = job();
    let whole = undisturbed(&job);
    let temp = tempfile::tempdir().unwrap();
    let mut call = Call::new(temp.path(), &job);
    for at in [6, 9, 12, 13, 19] {
        call.run_until_killed(at);
    }
    assert_eq!(call.finish(), whole);
    assert_eq!(call.from_step, 16);
}

#[test]
fn a_stopped_run_continues_where_it_stopped() {
    let mut job = job();
    job.run.checkpoint_every_steps = 0;
    let whole = undisturbed(&job);
    for at in 1..STEPS {
        let temp = tempfile::tempdir().unwrap();
        let mut call = Call::new(temp.path(), &job);
        call.stop_at = Some(at);
        let outcome = call.run().unwrap();
        let TrainOutcome::Stopped { step } = outcome else { panic!("{outcome:?}") };
        // Asked before the first step, at the earliest.
        let step_done = if at == 1 { 0 } else { at };
        assert_eq!(step, step_done);
        call.stop_at = None;
        assert_eq!(call.finish(), whole);
        assert_eq!(call.from_step, step_done);
    }
}

#[test]
fn checkpoints_also_go_by_minutes() {
    let mut job = job();
    job.run.checkpoint_every_steps = 0;
    job.run.checkpoint_every_minutes = 6.0;
    let whole = undisturbed(&job);
    let temp = tempfile::tempdir().unwrap();
    let mut call = Call::new(temp.path(), &job);
    call.run_until_killed(12);
    assert_eq!(call.finish(), whole);
    assert_eq!(call.from_step, 7);
}

#[test]
fn every_state_that_an_interrupted_checkpoint_leaves_can_be_continued() {
    let job = job();
    let whole = undisturbed(&job);
    let names = ["checkpoint", "checkpoint.new", "checkpoint.old"];
    // Which checkpoint (of step 4 or 8, or half of one) stands under which name.
    let states: [([Option<u64>; 3], u64); 6] = [
        ([Some(4), Some(0), None], 4),
        ([Some(4), Some(8), None], 4),
        ([None, Some(8), Some(4)], 8),
        ([None, Some(0), Some(4)], 4),
        ([Some(8), None, Some(4)], 8),
        ([Some(0), None, None], 0),
    ];
    for (state, from_step) in states {
        let temp = tempfile::tempdir().unwrap();
        for (name, step) in names.iter().zip(state) {
            let Some(step) = step else { continue };
            let source = tempfile::tempdir().unwrap();
            Call::new(source.path(), &job).run_until_killed(step.max(4) + 1);
            let checkpoint = source.path().join(CHECKPOINT_FOLDER);
            if step == 0 {
                fs::remove_file(checkpoint.join("checkpoint.json")).unwrap();
            }
            fs::rename(checkpoint, temp.path().join(name)).unwrap();
        }
        // Lines of a run that went on for some steps.
        let source = tempfile::tempdir().unwrap();
        Call::new(source.path(), &job).run_until_killed(11);
        fs::copy(source.path().join(METRICS_FILE), temp.path().join(METRICS_FILE)).unwrap();

        let mut call = Call::new(temp.path(), &job);
        assert_eq!(call.finish(), whole, "{state:?}");
        assert_eq!(call.from_step, from_step, "{state:?}");
        remove_checkpoint(temp.path()).unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_cannot_be_continued_is_started_over() {
    let job = job();
    let whole = undisturbed(&job);
    let edit_header = |folder: &Path, from: &str, to: &str| {
        let path = folder.join(CHECKPOINT_FOLDER).join("checkpoint.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    let edit_state = |folder: &Path, edit: &dyn Fn(&mut Vec<u8>)| {
        let path = folder.join(CHECKPOINT_FOLDER).join("state.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    let damages: [&dyn Fn(&Path); 9] = [
        &|folder| edit_header(folder, "\"version\": 2", "\"version\": 99"),
        &|folder| edit_header(folder, "0123456789ab\"", "ffffffffffff\""),
        &|folder| edit_header(folder, "0123456789abcdef", "ffffffffffffffff"),
        &|folder| edit_header(folder, "{", "["),
        &|folder| edit_state(folder, &|bytes| bytes.truncate(bytes.len() / 2)),
        &|folder| edit_state(folder, &|bytes| *bytes.last_mut().unwrap() ^= 1),
        &|folder| fs::remove_file(folder.join(CHECKPOINT_FOLDER).join("state.safetensors")).unwrap(),
        &|folder| fs::remove_file(folder.join(METRICS_FILE)).unwrap(),
        &|folder| fs::write(folder.join(METRICS_FILE), "{\"step\":3").unwrap(),
    ];
    for (i, damage) in damages.iter().enumerate() {
        let temp = tempfile::tempdir().unwrap();
        let mut call = Call::new(temp.path(), &job);
        call.run_until_killed(10);
        damage(temp.path());
        assert_eq!(call.finish(), whole, "damage {i}");
        assert_eq!(call.from_step, 0, "damage {i}");
    }
    // A checkpoint of another width, were it to have this trial's name.
    let mut wider = job.clone();
    wider.config.sae.d_sae = 11;
    let temp = tempfile::tempdir().unwrap();
    Call::new(temp.path(), &wider).run_until_killed(10);
    let mut call = Call::new(temp.path(), &job);
    assert_eq!(call.finish(), whole);
    assert_eq!(call.from_step, 0);
}

#[test]
fn a_torn_line_is_cut_off() {
    let job = job();
    let whole = undisturbed(&job);
    let temp = tempfile::tempdir().unwrap();
    let mut call = Call::new(temp.path(), &job);
    call.run_until_killed(9);
    let path = temp.path().join(METRICS_FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"step\":9,\"los");
    fs::write(&path, bytes).unwrap();
    assert_eq!(call.finish(), whole);
    assert_eq!(call.from_step, 8);
}

#[test]
fn what_is_not_finite_ends_the_run_at_its_step() {
    let job = job();
    for value in [f32::NAN, f32::INFINITY, f32::MAX] {
        let temp = tempfile::tempdir().unwrap();
        let mut call = Call::new(temp.path(), &job);
        call.break_batch = Some((9, value));
        let outcome = call.run().unwrap();
        let TrainOutcome::Diverged { step, loss, from_step, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!((step, from_step), (10, 0));
        if value != f32::MAX {
            assert!(!loss.is_finite());
        }
        let lines = fs::read_to_string(temp.path().join(METRICS_FILE)).unwrap();
        assert_eq!(lines.lines().count(), 3);
    }
}

#[test]
fn lines_come_every_few_steps_and_at_the_end() {
    let (_, lines) = undisturbed(&job());
    let steps: Vec<u64> = String::from_utf8(lines)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [3, 6, 9, 12, 15, 18, 20]);
}

#[test]
fn on_tensors_too_whatever_interrupts_a_run_changes_no_bit() {
    let standard = job().config.sae;
    for sae in [
        standard,
        topk_sae(),
        batch_topk_sae(),
        matryoshka_sae(),
        jumprelu_sae(),
        gated_sae(),
        matching_pursuit_sae(),
    ] {
        let mut job = job();
        job.config.sae = sae;
        tensors_change_no_bit(&job);
    }
}

fn tensors_change_no_bit(job: &TrialJob) {
    let on_tensors = |folder: &Path, stop_at: Option<u64>| {
        let mut call = Call::new(folder, job);
        call.backend = Backend::Tensors(Device::Cpu);
        call.stop_at = stop_at;
        if stop_at.is_some() {
            assert!(matches!(call.run(), Ok(TrainOutcome::Stopped { .. })));
            call.stop_at = None;
        }
        call.finish()
    };
    let temp = tempfile::tempdir().unwrap();
    let whole = on_tensors(temp.path(), None);
    for at in 2..STEPS {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(on_tensors(temp.path(), Some(at)), whole, "stopped at {at}");
        let temp = tempfile::tempdir().unwrap();
        let mut call = Call::new(temp.path(), job);
        call.backend = Backend::Tensors(Device::Cpu);
        call.run_until_killed(at);
        assert_eq!(call.finish(), whole, "killed at {at}");
        // It died in the step before, reading ahead.
        assert_eq!(call.from_step, (at - 1) / 4 * 4, "killed at {at}");
    }
    // The kernels come to nearly the same.
    let (on_kernels, lines) = undisturbed(job);
    let name = job.config.sae.architecture.name();
    let off = (whole.0.losses.overall - on_kernels.losses.overall).abs();
    assert!(off < 1e-5 * on_kernels.losses.overall, "{name}: {off}");
    // Of the same lines with the same names.
    let names = |lines: &[u8]| -> Vec<Vec<String>> {
        let lines = String::from_utf8(lines.to_vec()).unwrap();
        let keys = |line| -> Vec<String> {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line.as_object().unwrap().keys().cloned().collect()
        };
        lines.lines().map(keys).collect()
    };
    assert_eq!(names(&whole.1), names(&lines), "{name}");
}

#[test]
fn tensors_end_a_run_that_is_not_finite_and_alone_take_bfloat16() {
    let mut job = job();
    let temp = tempfile::tempdir().unwrap();
    let mut call = Call::new(temp.path(), &job);
    call.backend = Backend::Tensors(Device::Cpu);
    call.break_batch = Some((9, f32::NAN));
    let outcome = call.run().unwrap();
    assert!(matches!(outcome, TrainOutcome::Diverged { step: 10, .. }), "{outcome:?}");

    job.config.sae = topk_sae();
    let temp = tempfile::tempdir().unwrap();
    job.config.train.options.autocast = true;
    let mut call = Call::new(temp.path(), &job);
    let error = call.run().unwrap_err().to_string();
    assert!(error.starts_with("train.autocast = true (products in bfloat16) is for GPUs only"), "{error}");
    call.backend = Backend::Tensors(Device::Cpu);
    assert!(matches!(call.run().unwrap(), TrainOutcome::Finished { .. }));
}
