//! The whole loop on a real store: it learns, it can be interrupted, and threads change nothing.

use super::small_trial::{data_of, small_trial};
use candle_core::Device;
use saesweep::{
    kernels::{Pool, Shape, Workspace},
    store::{
        EvalPart, FORMAT_VERSION, ModelIdentity, SourceIdentity, Store, StoreIdentity, StoreLabel,
        StoreWriter, WriterStart,
    },
    train::{Backend, Hooks, TrainError, TrainOutcome, Trained, train},
    trial::{
        Architecture, NormalizeActivations, OnFailure, RunConfig, SequenceSeparator, StoreDtype, TrialId,
        TrialJob,
    },
};
use serde_json::json;
use std::{cell::Cell, fs, path::Path};

const D: usize = 12;
const CONTEXT: usize = 8;
const SEQUENCES: usize = 160;

/// Row `at` of the planted data: a few of 20 directions, an offset, a little noise.
fn row(at: usize) -> [f32; D] {
    let mut state = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 24) as f32
    };
    let mut x = [0.7; D];
    for direction in 0..20_usize {
        let (chosen, amount) = (next() < 0.15, next());
        if chosen {
            for (i, x) in x.iter_mut().enumerate() {
                *x += 2.0 * amount * ((direction * 37 + i * i * 11 + direction * i * 5) as f32).sin();
            }
        }
    }
    x.map(|x| x + 0.05 * (next() - 0.5))
}

fn build_store(stores: &Path) -> Store {
    let identity = StoreIdentity {
        format_version: FORMAT_VERSION,
        source: SourceIdentity::Model(ModelIdentity {
            model_hash: "11".repeat(32),
            hook: "blocks.0.hook_mlp_out".to_owned(),
            hook_out: None,
            data_hash: "22".repeat(32),
            column: "text".to_owned(),
            context_size: CONTEXT,
            prepend_bos: true,
            separator: SequenceSeparator::Bos,
            disable_concat: false,
            eval_fraction: 0.02,
            eval_max_tokens: 100,
        }),
        tokens: (SEQUENCES * CONTEXT) as u64,
        dtype: StoreDtype::Float32,
        shuffle_buffer_rows: 512,
        shuffle_seed: 3,
    };
    let label = StoreLabel {
        model: "org/model".to_owned(),
        hook: "blocks.0.hook_mlp_out".to_owned(),
        dataset: "org/stories".to_owned(),
    };
    let WriterStart::Build(mut writer) =
        StoreWriter::create(stores, &identity, &label, D, SEQUENCES).unwrap()
    else {
        panic!("a new store is not whole");
    };
    while let Some(plan) = writer.next_shard() {
        let rows: Vec<f32> =
            plan.sequences.iter().flat_map(|s| s * CONTEXT..(s + 1) * CONTEXT).flat_map(row).collect();
        writer.write_shard(&plan, &rows).unwrap();
    }
    let eval = EvalPart {
        context_size: CONTEXT,
        tokens: vec![0; CONTEXT],
        acts: vec![0.0; CONTEXT * D],
        carry: Vec::new(),
        loss_clean: vec![0.0; CONTEXT - 1],
        loss_ablated: vec![0.0; CONTEXT - 1],
        kl_ablated: vec![0.0; CONTEXT],
        special_ids: Vec::new(),
    };
    writer.finish(eval).unwrap();
    Store::open(stores, &identity.key()).unwrap()
}

fn job(mode: NormalizeActivations) -> TrialJob {
    let mut config = small_trial();
    data_of(&mut config).context_size = CONTEXT;
    config.sae.d_sae = 40;
    config.sae.normalize_activations = mode;
    config.sae.architecture =
        Architecture::Standard { l1_coefficient: 0.3, lp_norm: 1.0, l1_warm_up_steps: 20 };
    (config.train.tokens, config.train.batch_size, config.train.lr) = (9600, 48, 0.01);
    (config.train.lr_warm_up_steps, config.train.lr_decay_steps) = (5, 40);
    (config.train.dead_feature_window, config.train.feature_sampling_window) = (30, 50);
    TrialJob {
        id: TrialId("0123456789ab".to_owned()),
        store_key: "0123456789abcdef".to_owned(),
        init_blake3: None,
        run: RunConfig {
            retries: 1,
            on_failure: OnFailure::Continue,
            log_every_steps: 25,
            checkpoint_every_steps: 40,
            checkpoint_every_minutes: 0.0,
            grace_secs: 1.0,
        },
        config,
    }
}

fn run(
    folder: &Path,
    job: &TrialJob,
    store: &Store,
    threads: usize,
    stop_at: Option<u64>,
) -> Result<TrainOutcome, TrainError> {
    run_on(&Backend::Kernels, folder, job, store, threads, stop_at)
}

fn run_on(
    backend: &Backend,
    folder: &Path,
    job: &TrialJob,
    store: &Store,
    threads: usize,
    stop_at: Option<u64>,
) -> Result<TrainOutcome, TrainError> {
    let asked = Cell::new(0);
    let hooks = Hooks {
        on_start: &mut |step| asked.set(step),
        on_log: &mut |_| {},
        should_stop: &|| {
            asked.set(asked.get() + 1);
            stop_at.is_some_and(|at| asked.get() > at)
        },
        now_secs: &|| 0.0,
    };
    train(folder, job, store, None, &Pool::new(threads), backend, hooks)
}

fn finish(folder: &Path, job: &TrialJob, store: &Store, threads: usize) -> (Trained, Vec<u8>) {
    finish_on(&Backend::Kernels, folder, job, store, threads)
}

fn finish_on(
    backend: &Backend,
    folder: &Path,
    job: &TrialJob,
    store: &Store,
    threads: usize,
) -> (Trained, Vec<u8>) {
    let outcome = run_on(backend, folder, job, store, threads, None).unwrap();
    let TrainOutcome::Finished { trained, steps: 200, .. } = outcome else { panic!("{outcome:?}") };
    (*trained, fs::read(folder.join("metrics.jsonl")).unwrap())
}

/// Share of the variance of the store's rows, as the model made them, that the SAE keeps.
fn explained(trained: &Trained, store: &Store) -> f64 {
    let n = store.rows() as usize;
    let mut x = vec![0.0; n * D];
    store.read_rows(0, &mut x);
    let mut x_hat = vec![0.0; n * D];
    let pool = Pool::new(1);
    let mut ws = Workspace::new(Shape { d_in: D, d_sae: trained.sae.cfg.d_sae, batch: n }, &pool);
    trained.sae.reconstruct(&pool, &mut ws, &x, &mut x_hat);
    let mean: Vec<f64> =
        (0..D).map(|j| x.iter().skip(j).step_by(D).map(|&x| f64::from(x)).sum::<f64>() / n as f64).collect();
    let residual: f64 = x.iter().zip(&x_hat).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let variance: f64 = x.iter().enumerate().map(|(i, &x)| (f64::from(x) - mean[i % D]).powi(2)).sum();
    1.0 - residual / variance
}

#[test]
fn every_way_of_scaling_learns_the_planted_directions() {
    let temp = tempfile::tempdir().unwrap();
    let store = build_store(&temp.path().join("stores"));
    for mode in [
        NormalizeActivations::None,
        NormalizeActivations::ExpectedAverageOnlyIn,
        NormalizeActivations::ConstantNormRescale,
        NormalizeActivations::LayerNorm,
        NormalizeActivations::CovarianceWhitening,
    ] {
        for b_dec in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut job = job(mode);
            job.config.sae.apply_b_dec_to_input = b_dec;
            let (trained, lines) = finish(folder.path(), &job, &store, 1);
            let explained = explained(&trained, &store);
            let last = String::from_utf8(lines).unwrap().lines().last().unwrap().to_owned();
            let logged =
                serde_json::from_str::<serde_json::Value>(&last).unwrap()["metrics/explained_variance"]
                    .as_f64()
                    .unwrap();
            println!("{mode:?}, b_dec {b_dec}: {explained:.4}, logged {logged:.4}");
            assert!(explained > 0.8, "{mode:?}, b_dec {b_dec}: {explained}");
            if mode != NormalizeActivations::CovarianceWhitening {
                // The last batch's, of the scaled rows: near the one of all rows, if the fold is right.
                assert!((explained - logged).abs() < 0.05, "{mode:?}: {explained}, logged {logged}");
            }

            // Candle tensors learn the same.
            let folder = tempfile::tempdir().unwrap();
            let backend = Backend::Tensors(Device::Cpu);
            let (on_tensors, lines) = finish_on(&backend, folder.path(), &job, &store, 1);
            let off = (self::explained(&on_tensors, &store) - explained).abs();
            assert!(off < 1e-3, "{mode:?}, b_dec {b_dec}: {off}");
            let last = String::from_utf8(lines).unwrap().lines().last().unwrap().to_owned();
            let line: serde_json::Value = serde_json::from_str(&last).unwrap();
            let off = (line["metrics/explained_variance"].as_f64().unwrap() - logged).abs();
            assert!(off < 1e-3, "{mode:?}, b_dec {b_dec}: {off} logged");
        }
    }
}

#[test]
fn threads_and_interruptions_change_no_bit() {
    let temp = tempfile::tempdir().unwrap();
    let store = build_store(&temp.path().join("stores"));
    for mode in [NormalizeActivations::ExpectedAverageOnlyIn, NormalizeActivations::CovarianceWhitening] {
        let job = job(mode);
        let folder = temp.path().join(format!("{mode:?}"));
        fs::create_dir_all(&folder).unwrap();
        let whole = finish(&folder, &job, &store, 1);
        let again = tempfile::tempdir().unwrap();
        for stop_at in [30, 90, 91] {
            let outcome = run(again.path(), &job, &store, 2, Some(stop_at)).unwrap();
            assert!(matches!(outcome, TrainOutcome::Stopped { step } if step == stop_at), "{outcome:?}");
        }
        assert!(finish(again.path(), &job, &store, 3) == whole);
    }
}

#[test]
fn settings_that_no_step_could_honour_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let store = build_store(&temp.path().join("stores"));
    let message = |mode: NormalizeActivations, k: usize, batch_size: usize| {
        let mut job = job(mode);
        job.config.sae.architecture = serde_json::from_value(json!({
            "architecture": "topk", "k": k, "aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": true
        }))
        .unwrap();
        if batch_size > job.config.train.batch_size {
            // A configuration that is fine, on a store that is not what it asks for.
            (job.config.store.tokens, job.config.train.tokens) = (1_000_000, 1_000_000);
        }
        job.config.train.batch_size = batch_size;
        run(temp.path(), &job, &store, 1, None).unwrap_err().to_string()
    };
    insta::assert_snapshot!(
        [
            message(NormalizeActivations::None, 41, 48),
            message(NormalizeActivations::LayerNorm, 4, 48),
            message(NormalizeActivations::None, 4, 5000),
        ]
        .join("\n"),
        @r#"
    sae.k = 41 with sae.d_sae = 40, expected k at most d_sae
    sae.normalize_activations = "layer_norm" with sae.architecture = "topk", expected for topk, one of "none", "expected_average_only_in", "covariance_whitening" (topk's auxiliary loss on dead latents is not defined for modes that scale every row on its own; with sae.aux_loss_coefficient = 0 there is none)
    the store has 1280 rows, fewer than one batch of 5000
    "#
    );
}
