//! Transcoders: training against SAELens' own trainer, and the whole way from a sweep file to an export.

mod golden;
mod sweep;

use super::{
    small_harvest::{hooked_trial, numbers, stories},
    small_sae::noise,
    small_trial::small_trial,
};
use candle_core::{Device, Tensor};
use saesweep::{
    eval::evaluate,
    harvest::ensure_store,
    kernels::{Params, Pool, Shape, Workspace},
    model::{HookState, Model, per_token_loss},
    sae::{Sae, SaveInfo, load, save},
    store::Store,
    train::{Output, Trainer},
    trial::{Architecture, EvalConfig, NormalizeActivations, SparsityLossMode, TrialConfig, TrialId},
};
use safetensors::{Dtype, tensor::TensorView};
use std::{collections::BTreeMap, fs, ops::ControlFlow, path::Path};

fn standard() -> Architecture {
    Architecture::Standard { l1_coefficient: 0.5, lp_norm: 1.0, l1_warm_up_steps: 0 }
}

fn topk(rescale_acts_by_decoder_norm: bool) -> Architecture {
    Architecture::TopK { k: 5, aux_loss_coefficient: 1.0, rescale_acts_by_decoder_norm }
}

fn jumprelu() -> Architecture {
    Architecture::JumpRelu {
        jumprelu_init_threshold: 0.05,
        jumprelu_bandwidth: 0.1,
        jumprelu_sparsity_loss_mode: SparsityLossMode::Step,
        l0_coefficient: 0.01,
        l0_warm_up_steps: 0,
        pre_act_loss_coefficient: 0.0,
        jumprelu_tanh_scale: 4.0,
        jumprelu_ste_to_input: false,
        target_l0: 0.0,
    }
}

/// Rows of width `d` as rows of `width`, zeros beyond.
fn padded(rows: &[f32], d: usize, width: usize) -> Vec<f32> {
    rows.chunks_exact(d).flat_map(|row| (0..width).map(|i| row.get(i).copied().unwrap_or(0.0))).collect()
}

fn random_transcoder(architecture: Architecture, d_in: usize, d_out: usize, d_sae: usize) -> Sae {
    let mut cfg = small_trial().sae;
    (cfg.architecture, cfg.d_sae) = (architecture, d_sae);
    let width = d_in.max(d_out);
    let has_threshold = matches!(cfg.architecture, Architecture::JumpRelu { .. });
    let params = Params {
        w_enc: padded(&noise(d_sae * d_in, 1, 0.4), d_in, width),
        w_dec: padded(&noise(d_sae * d_out, 2, 0.3), d_out, width),
        b_enc: noise(d_sae, 3, 0.3),
        b_dec: padded(&noise(d_out, 4, 0.3), d_out, width),
        threshold: if has_threshold { noise(d_sae, 5, 0.2) } else { Vec::new() },
        ..Params::default()
    };
    Sae { cfg, d_in, d_out: Some(d_out), params }
}

/// What a transcoder gives for rows `x`, one formula after the other in double precision.
fn by_hand(sae: &Sae, x: &[f32]) -> Vec<f32> {
    let (d_in, d_out, width) = (sae.d_in, sae.d_out.unwrap(), sae.width());
    let params = &sae.params;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let mut out = Vec::new();
    for row in x.chunks_exact(d_in) {
        let mut y: Vec<f64> = params.b_dec[..d_out].iter().map(|b| f64::from(*b)).collect();
        for f in 0..sae.cfg.d_sae {
            let pre = dot(&params.w_enc[f * width..][..d_in], row) + f64::from(params.b_enc[f]);
            let threshold = params.threshold.get(f).map_or(0.0, |t| f64::from(*t)).max(0.0);
            if pre > threshold {
                let row = &params.w_dec[f * width..][..d_out];
                y.iter_mut().zip(row).for_each(|(y, w)| *y += pre * f64::from(*w));
            }
        }
        out.extend(y.into_iter().map(|y| y as f32));
    }
    out
}

/// Rows, held-out part and metrics for hooks of equal and of different widths, with and without a carried
/// residual stream between them.
#[test]
fn a_store_of_two_hooks_and_its_evaluation_are_what_the_model_gives() {
    for (family, hook, hook_out) in [
        ("gpt_neo", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"),
        ("llama", "blocks.0.mlp.hook_post", "blocks.0.hook_mlp_out"),
        ("qwen2", "hook_embed", "blocks.1.mlp.hook_pre"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model")).join(family);
        let files = stories(folder.path());
        let cfg = hooked_trial(hook, hook_out);
        let quietly = &mut |_| ControlFlow::Continue(());
        let (key, _) = ensure_store(folder.path(), &path, &files, &cfg, quietly).unwrap();
        let store = Store::open(folder.path(), &key).unwrap();
        // The same hooks one by one have stores of their own.
        let (alone, _) =
            ensure_store(folder.path(), &path, &files, &hooked_trial(hook, ""), quietly).unwrap();
        assert_ne!(key, alone);
        let alone = Store::open(folder.path(), &alone).unwrap();
        let model = Model::load(&path).unwrap();
        let points = [hook, hook_out].map(|name| model.config().hook(name).unwrap());
        let [d_in, d_out] = points.map(|point| model.config().hook_width(&point));
        assert_eq!(
            (store.d_in(), store.d_out(), store.width()),
            (d_in, Some(d_out), d_in + d_out),
            "{family}"
        );

        // Training rows: the inputs are those of the other store in the same order, and each has its output.
        let rows_of = |store: &Store| {
            let mut rows = vec![0.0; store.rows() as usize * store.width()];
            store.read_rows(0, &mut rows);
            rows
        };
        let (rows, inputs) = (rows_of(&store), rows_of(&alone));
        for (row, input) in rows.chunks_exact(d_in + d_out).zip(inputs.chunks_exact(d_in)) {
            assert_eq!(&row[..d_in], input);
        }
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let mean = |part: std::ops::Range<usize>| {
            rows.chunks_exact(d_in + d_out).map(|row| norm(&row[part.clone()])).sum::<f64>()
                / store.rows() as f64
        };
        let norms = store.stats().unwrap().norms.unwrap();
        assert!(
            (norms[0] - mean(0..d_in)).abs() < 1e-9 && (norms[1] - mean(d_in..d_in + d_out)).abs() < 1e-9
        );

        let eval = store.eval().unwrap();
        let n = eval.tokens.len() / 10;
        let tokens = Tensor::from_slice(eval.tokens, (n, 10), &Device::Cpu).unwrap();
        let (seen, _) = model.run_with_hooks(&tokens, &points).unwrap();
        let (x, y) = (numbers(&seen[hook]), numbers(&seen[hook_out]));
        for ((row, x), y) in
            eval.acts.chunks_exact(d_in + d_out).zip(x.chunks_exact(d_in)).zip(y.chunks_exact(d_out))
        {
            for (found, expected) in row.iter().zip(x.iter().chain(y)) {
                assert!((found - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{found} {expected}");
            }
        }

        for architecture in [standard(), jumprelu()] {
            let sae = random_transcoder(architecture, d_in, d_out, 30);
            let found = evaluate(
                Some(&path),
                &store,
                &sae,
                &EvalConfig { exclude_special_tokens: false },
                &Pool::new(1),
            )
            .unwrap()
            .metrics;
            let y_hat = by_hand(&sae, &x);
            let state = model.run_to_hook(&tokens, &points[1]).unwrap();
            let loss_with = |acts: Tensor| {
                let state = HookState { acts, carry: state.carry.clone() };
                let logits = model.run_from_hook(&state, &points[1]).unwrap();
                let loss = numbers(&per_token_loss(&logits, &tokens).unwrap());
                loss.iter().map(|x| f64::from(*x)).sum::<f64>() / loss.len() as f64
            };
            let replaced = Tensor::from_slice(&y_hat, (n, 10, d_out), &Device::Cpu).unwrap();
            let residual: f64 = y.iter().zip(&y_hat).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let mean_of = |d: usize| {
                y.iter().skip(d).step_by(d_out).map(|x| f64::from(*x)).sum::<f64>() / (n * 10) as f64
            };
            let means: Vec<f64> = (0..d_out).map(mean_of).collect();
            let variance: f64 =
                y.iter().enumerate().map(|(i, y)| (f64::from(*y) - means[i % d_out]).powi(2)).sum();
            for (name, expected) in [
                ("ce_loss_with_sae", loss_with(replaced)),
                ("ce_loss_with_ablation", loss_with(state.acts.zeros_like().unwrap())),
                ("ce_loss_without_sae", loss_with(state.acts.clone())),
                ("mse", residual / (n * 10) as f64),
                ("explained_variance", 1.0 - residual / variance),
            ] {
                let off = (found[name] - expected).abs() / expected.abs();
                println!("{family}: {name} {} expected {expected}, off by {off:.1e}", found[name]);
                assert!(off < 2e-5, "{family}: {name} is {}, expected {expected}", found[name]);
            }
        }
        // An SAE of the input is no transcoder.
        let mut sae = random_transcoder(standard(), d_in, d_in, 30);
        sae.d_out = None;
        let error =
            evaluate(Some(&path), &store, &sae, &EvalConfig { exclude_special_tokens: false }, &Pool::new(1))
                .unwrap_err()
                .to_string();
        assert!(error.contains(&format!("holds width {d_in} -> {d_out}")), "{error}");
    }
}

fn info(mut config: TrialConfig, sae: &Sae) -> SaveInfo {
    config.sae = sae.cfg.clone();
    SaveInfo {
        trial: TrialId("0123456789ab".to_owned()),
        store_key: "0123456789abcdef".to_owned(),
        config,
        l0: Some(3.5),
        num_dead_features: Some(1),
        metrics: BTreeMap::new(),
    }
}

#[test]
fn transcoders_come_back_from_disk_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    for (d_in, d_out) in [(6, 6), (5, 9), (9, 5), (1, 3)] {
        for architecture in [standard(), topk(true), topk(false), jumprelu()] {
            let sae = random_transcoder(architecture, d_in, d_out, 11);
            let info = info(hooked_trial("blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out"), &sae);
            save(folder.path().join("sae").as_path(), &sae, None, &info).unwrap();
            let (back, origin) = saesweep::sae::load_with_origin(&folder.path().join("sae")).unwrap();
            // Settings of training that are not in the metadata's details are not looked at here.
            assert_eq!(back, sae);
            assert_eq!(origin.hook.as_deref(), Some("blocks.0.hook_resid_mid"));
            assert_eq!(origin.hook_out.as_deref(), Some("blocks.0.hook_mlp_out"));
        }
    }
    let file = folder.path().join("sae/cfg.json");
    let text = fs::read_to_string(&file).unwrap();
    for (from, to, told) in [
        ("\"d_out\": 3", "\"d_out\": 4", "has shape"),
        ("\"d_out\": 3", "\"d_other\": 3", "lacks `d_out`"),
        ("\"apply_b_dec_to_input\": false", "\"apply_b_dec_to_input\": true", "false in a transcoder"),
        (
            "\"normalize_activations\": \"none\"",
            "\"normalize_activations\": \"layer_norm\"",
            "\"none\" in a transcoder",
        ),
        ("\"jumprelu_transcoder\"", "\"skip_transcoder\"", "architecture"),
    ] {
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replace(from, to)).unwrap();
        let error = load(&folder.path().join("sae")).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

/// Writes trained transcoders with what this program makes of some activations, for `tests/sae_lens_roundtrip.py`.
#[test]
fn folders_for_the_sae_lens_script_are_written() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sae_lens_roundtrip");
    let (n, d_sae, pool) = (64, 96, Pool::new(1));
    for (name, architecture, d_in, d_out, scales) in [
        ("transcoder", standard(), 32, 32, [1.0, 1.0]),
        ("transcoder_wider", standard(), 24, 40, [0.7, 1.9]),
        ("jumprelu_transcoder", jumprelu(), 32, 32, [0.7, 1.9]),
        ("jumprelu_transcoder_narrower", jumprelu(), 40, 24, [1.0, 1.0]),
    ] {
        let mut config = hooked_trial("blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out");
        (config.sae.architecture, config.sae.d_sae, config.train.batch_size) = (architecture, d_sae, n);
        config.sae.normalize_activations = NormalizeActivations::ExpectedAverageOnlyIn;
        let rows = noise(n * (d_in + d_out), 6, 2.0);
        let output = Output { d_in, d_out, scale_in: scales[0], scale_out: scales[1] };
        let params = saesweep::sae::init_transcoder(&config.sae, d_in, d_out, 1);
        let mut trainer = Trainer::new(
            &config.sae,
            &config.train,
            output.width(),
            params,
            saesweep::sae::Normalizer::Identity,
            &pool,
        )
        .with_output(output);
        for _ in 0..10 {
            assert!(trainer.step(&pool, &rows).unwrap().is_finite());
        }
        let trained = trainer.finish(&pool).unwrap();
        let folder = root.join(name);
        let mut info = info(config.clone(), &trained.sae);
        info.config.sae = config.sae;
        save(&folder, &trained.sae, Some(&trained.sparsity), &info).unwrap();
        let sae = load(&folder).unwrap();
        let x: Vec<f32> = rows.chunks_exact(d_in + d_out).flat_map(|row| row[..d_in].to_vec()).collect();
        let mut x_hat = vec![0.0; n * d_out];
        let shape = Shape { d_in: sae.width(), d_sae, batch: n };
        let latents = sae.reconstruct(&pool, &mut Workspace::new(shape, &pool), &x, &mut x_hat);
        let by_hand = by_hand(&sae, &x);
        assert!(x_hat.iter().zip(&by_hand).all(|(a, b)| (a - b).abs() < 1e-4), "{name}");
        let mut acts = vec![0.0; n * d_sae];
        for token in 0..n {
            let (latent, value) = latents.row(token);
            latent.iter().zip(value).for_each(|(f, value)| acts[token * d_sae + *f as usize] = *value);
        }
        let parts = [("x", &x, d_in), ("acts", &acts, d_sae), ("x_hat", &x_hat, d_out)];
        let views = parts.map(|(name, data, width)| {
            (name, TensorView::new(Dtype::F32, vec![n, width], bytemuck::cast_slice(data)).unwrap())
        });
        safetensors::serialize_to_file(views, None, &folder.join("forward.safetensors")).unwrap();
    }
}
