//! SAEs going out to other programs and coming in from them.

use super::tiny_sweep::TinySweep;
use saesweep::{
    kernels::{Params, Pool, Shape, SparseActs, Workspace},
    sae::{
        CONFIG_FILE, DICTIONARY_CONFIG_FILE, DICTIONARY_FILE, ExportError, ExportFormat, ExportInfo,
        RUNNER_FILE, SPARSITY_FILE, Sae, SaveInfo, WEIGHTS_FILE, export, fold_decoder_norms, load,
        load_with_origin, save,
    },
    spec::{self, SpecSource},
    trial::{Architecture, TrialConfig, TrialId},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A place for `tests/sae_lens_roundtrip.py` to look at, empty.
fn for_python(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sae_lens_roundtrip").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    folder
}

/// A trial with these settings of `[sae]`.
fn config(sae: &str) -> TrialConfig {
    let text = format!(
        "[sweep]\nname = \"one\"\n[model]\nname = \"org/model\"\nhook = \"blocks.3.hook_mlp_out\"\n\
         [data]\ndataset = \"org/data\"\n[train]\ntokens = 100_000\nlr_decay_steps = 4\n[sae]\n{sae}\n"
    );
    let source = SpecSource { path: "one.toml".to_owned(), text, ..SpecSource::default() };
    let mut plan = spec::load(&source).unwrap_or_else(|errors| panic!("{errors}"));
    plan.trials.remove(0).config
}

/// Numbers without a pattern, the same ones for the same seed.
fn noise(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0) * size
    };
    (0..n).map(|_| next()).collect()
}

fn random_params(d_in: usize, d_sae: usize, seed: u64) -> Params {
    Params {
        w_enc: noise(d_sae * d_in, seed, 0.5),
        w_dec: noise(d_sae * d_in, seed + 1, 0.5),
        b_enc: noise(d_sae, seed + 2, 0.5),
        b_dec: noise(d_in, seed + 3, 0.5),
    }
}

fn dense(acts: &SparseActs, d_sae: usize) -> Vec<f32> {
    let mut out = vec![0.0; acts.n_tokens() * d_sae];
    for token in 0..acts.n_tokens() {
        let (latents, values) = acts.row(token);
        for (latent, value) in latents.iter().zip(values) {
            out[token * d_sae + *latent as usize] = *value;
        }
    }
    out
}

/// Latents (B, F) and reconstruction (B, D).
fn forward(sae: &Sae, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let pool = Pool::new(1);
    let shape = Shape { d_in: sae.d_in, d_sae: sae.cfg.d_sae, batch: x.len() / sae.d_in };
    let mut out = vec![0.0; x.len()];
    let acts = sae.reconstruct(&pool, &mut Workspace::new(shape, &pool), x, &mut out);
    (dense(&acts, sae.cfg.d_sae), out)
}

fn write_forward(folder: &Path, x: &[f32], d_in: usize, acts: &[f32], x_hat: &[f32]) {
    let n = x.len() / d_in;
    let parts = [("x", x, d_in), ("acts", acts, acts.len() / n), ("x_hat", x_hat, d_in)];
    let views = parts.map(|(name, data, width)| {
        (name, TensorView::new(Dtype::F32, vec![n, width], bytemuck::cast_slice(data)).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("forward.safetensors")).unwrap();
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max) / largest;
    assert!(off <= tolerance, "{what}: off by {off:.1e} of the largest");
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A trial's folder with an SAE of these settings in it.
struct Trained {
    _dir: tempfile::TempDir,
    folder: PathBuf,
    config: TrialConfig,
    sae: Sae,
    id: TrialId,
    metrics: BTreeMap<String, f64>,
}

impl Trained {
    fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(settings);
        let (d_in, d_sae) = (24, config.sae.d_sae);
        let mut params = random_params(d_in, d_sae, 9);
        if matches!(config.sae.architecture, Architecture::TopK { rescale_acts_by_decoder_norm: true, .. }) {
            // As training leaves it.
            fold_decoder_norms(&mut params, d_in);
        }
        let sae = Sae { cfg: config.sae.clone(), d_in, params, threshold: None };
        let id = TrialId("0123456789ab".to_owned());
        let metrics = BTreeMap::from([("l0".to_owned(), 4.5)]);
        let folder = dir.path().join("trial/sae");
        let info = SaveInfo {
            trial: id.clone(),
            store_key: "0123456789abcdef".to_owned(),
            config: config.clone(),
            l0: Some(4.0),
            num_dead_features: Some(0),
            metrics: metrics.clone(),
        };
        save(&folder, &sae, Some(&vec![-2.0; d_sae]), &info).unwrap();
        Self { _dir: dir, folder, config, sae, id, metrics }
    }

    fn export(&self, to: &Path, format: ExportFormat) -> Result<Vec<&'static str>, ExportError> {
        let info = ExportInfo {
            trial: &self.id,
            store_key: "0123456789abcdef",
            config: &self.config,
            metrics: &self.metrics,
        };
        export(&self.folder, to, format, &info, true)
    }
}

/// The settings whose SAEs are exported, and what they are called.
const EXPORTED: [(&str, &str); 4] = [
    ("standard", "d_sae = 60\napply_b_dec_to_input = false"),
    ("standard_b_dec", "d_sae = 60\nl1_coefficient = 2.5"),
    ("topk", "architecture = \"topk\"\nd_sae = 60\nk = 7\napply_b_dec_to_input = false"),
    (
        "topk_without_rescaling",
        "architecture = \"topk\"\nd_sae = 60\nk = 7\nrescale_acts_by_decoder_norm = false",
    ),
];

#[test]
fn an_export_for_sae_lens_is_the_sae_and_the_configuration() {
    for (name, settings) in EXPORTED {
        let trained = Trained::new(settings);
        let to = for_python(&format!("export_{name}"));
        let files = trained.export(&to, ExportFormat::SaeLens).unwrap();
        assert_eq!(files, [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE, RUNNER_FILE]);
        assert_eq!(load(&to).unwrap(), trained.sae);
        let metadata = &json(&to.join(CONFIG_FILE))["metadata"];
        assert_eq!(metadata["saesweep_trial"], "0123456789ab");
        assert_eq!(metadata["saesweep_store"], "0123456789abcdef");
        assert_eq!(metadata["saesweep_metrics"]["l0"], 4.5);
        let x = noise(40 * 24, 3, 2.0);
        let (acts, x_hat) = forward(&trained.sae, &x);
        write_forward(&to, &x, 24, &acts, &x_hat);
        // The forward pass is there for the script, and is no part of an export.
        let refused = trained.export(&to, ExportFormat::SaeLens).unwrap_err().to_string();
        assert!(refused.contains("forward.safetensors"), "{refused}");
    }
}

#[test]
fn the_configuration_has_the_trial_s_settings_under_sae_lens_names() {
    let trained = Trained::new("d_sae = 60\nl1_coefficient = 2.5\nnormalize_activations = \"layer_norm\"");
    let to = tempfile::tempdir().unwrap();
    let to = to.path().join("export");
    trained.export(&to, ExportFormat::SaeLens).unwrap();
    let runner = json(&to.join(RUNNER_FILE));
    for (key, expected) in [
        ("/model_name", "\"org/model\""),
        ("/hook_name", "\"blocks.3.hook_mlp_out\""),
        ("/training_tokens", "100000"),
        ("/train_batch_size_tokens", "4096"),
        ("/lr_decay_steps", "4"),
        ("/lr_end", "0.00003"),
        ("/sequence_separator_token", "\"bos\""),
        ("/sae/architecture", "\"standard\""),
        ("/sae/d_in", "24"),
        ("/sae/l1_coefficient", "2.5"),
        ("/sae/normalize_activations", "\"layer_norm\""),
        ("/logger/log_to_wandb", "false"),
    ] {
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(runner.pointer(key), Some(&expected), "{key}");
    }
    let refused = trained.export(&to, ExportFormat::DictionaryLearning).unwrap_err();
    assert!(refused.is_refusal() && refused.to_string().contains("layer_norm"), "{refused}");
}

/// What dictionary_learning's `AutoEncoder` and `AutoEncoderTopK` compute, written out.
fn dictionary_forward(folder: &Path, x: &[f32]) -> Vec<f32> {
    let config = json(&folder.join(DICTIONARY_CONFIG_FILE));
    let bytes = fs::read(folder.join(DICTIONARY_FILE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let get = |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data()) };
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    let (f, d) = (60, 24);
    assert_eq!((shape("decoder.weight"), shape("encoder.weight")), (vec![d, f], vec![f, d]));
    let k = config["trainer"]["k"].as_u64();
    let (class, bias) = if k.is_some() { ("AutoEncoderTopK", "b_dec") } else { ("AutoEncoder", "bias") };
    assert_eq!(config["trainer"]["dict_class"], class);
    let (encoder, decoder) = (get("encoder.weight"), get("decoder.weight"));
    let (encoder_bias, bias) = (get("encoder.bias"), get(bias));
    let mut out = Vec::new();
    for x in x.chunks_exact(d) {
        let mut acts: Vec<f32> = (0..f)
            .map(|i| {
                let product: f32 = (0..d).map(|j| (x[j] - bias[j]) * encoder[i * d + j]).sum();
                (product + encoder_bias[i]).max(0.0)
            })
            .collect();
        if let Some(k) = k {
            let mut sorted = acts.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let limit = sorted[k as usize - 1];
            acts.iter_mut().for_each(|act| *act = if *act >= limit { *act } else { 0.0 });
        }
        out.extend((0..d).map(|j| (0..f).map(|i| acts[i] * decoder[j * f + i]).sum::<f32>() + bias[j]));
    }
    out
}

#[test]
fn an_export_for_dictionary_learning_is_the_same_function() {
    for (name, settings) in EXPORTED {
        let trained = Trained::new(settings);
        let to = for_python(&format!("dictionary_{name}"));
        let files = trained.export(&to, ExportFormat::DictionaryLearning).unwrap();
        assert_eq!(files, [DICTIONARY_CONFIG_FILE, DICTIONARY_FILE]);
        assert_eq!(json(&to.join(DICTIONARY_CONFIG_FILE))["trainer"]["layer"], 3);
        let x = noise(40 * 24, 3, 2.0);
        let (acts, x_hat) = forward(&trained.sae, &x);
        assert_close(name, &dictionary_forward(&to, &x), &x_hat, 2e-6);
        write_forward(&to, &x, 24, &acts, &x_hat);
    }
}

#[test]
fn a_trial_is_exported_once_and_into_a_place_of_its_own() {
    let sweep = TinySweep::new();
    sweep.expect(&["run", "sweep.toml"], 0);
    let (id, folder) = sweep.trials().into_iter().next().unwrap();
    let (stdout, stderr) = sweep.expect(&["export", &id[..8], "--to", "out/sae"], 0);
    assert_eq!(stdout, "out/sae\n");
    assert!(stderr.contains(RUNNER_FILE), "{stderr}");
    let to = sweep.path("out/sae");
    assert_eq!(names(&to), [CONFIG_FILE, RUNNER_FILE, WEIGHTS_FILE, SPARSITY_FILE]);
    assert_eq!(load(&to).unwrap(), load(&folder.join("sae")).unwrap());
    assert_eq!(names(&sweep.path("out")), ["sae"], "nothing is left beside it");

    let by_run = ["export", &id, "--run", "tiny", "--to", "out/sae", "--format", "dictionary-learning"];
    let (_, stderr) = sweep.expect(&by_run, 2);
    assert!(stderr.contains("is not empty"), "{stderr}");
    let (_, stderr) = sweep.expect(&[&by_run[..], &["--force"]].concat(), 0);
    assert!(stderr.contains("Python pickle"), "{stderr}");
    assert_eq!(names(&to), [DICTIONARY_FILE, DICTIONARY_CONFIG_FILE]);

    fs::write(to.join("thesis.tex"), "all of it").unwrap();
    let (_, stderr) = sweep.expect(&["export", &id, "--to", "out/sae", "--force"], 2);
    assert!(stderr.contains("thesis.tex") && to.join("thesis.tex").exists(), "{stderr}");
    let own = folder.join("sae");
    let (_, stderr) = sweep.expect(&["export", &id, "--to", own.to_str().unwrap(), "--force"], 2);
    assert!(stderr.contains("the trial's own folder"), "{stderr}");
    let (_, stderr) = sweep.expect(&["export", "zz", "--run", "tiny", "--to", "out/other"], 2);
    assert!(stderr.contains("no trial `zz` in the run `tiny`"), "{stderr}");
    fs::remove_file(folder.join("result.json")).unwrap();
    let (_, stderr) = sweep.expect(&["export", &id, "--to", "out/other"], 2);
    assert!(stderr.contains("it has not ended") && !sweep.path("out/other").exists(), "{stderr}");
}

#[test]
fn thresholds_and_old_settings_are_read() {
    let fixture = |name: &str| {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sae")).join(name);
        load_with_origin(&folder).unwrap()
    };
    let (sae, origin) = fixture("before_6_topk");
    assert_eq!(sae.architecture(), "topk");
    assert_eq!(origin.hook.as_deref(), Some("blocks.0.hook_mlp_out"));
    assert_eq!(origin.model.as_deref(), Some("tiny"));
    let (sae, _) = fixture("jumprelu");
    assert_eq!((sae.architecture(), sae.threshold.as_ref().map(Vec::len)), ("jumprelu", Some(12)));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("sae");
    let info = SaveInfo {
        trial: TrialId("0123456789ab".to_owned()),
        store_key: "0123456789abcdef".to_owned(),
        config: config("d_sae = 12"),
        l0: None,
        num_dead_features: None,
        metrics: BTreeMap::new(),
    };
    save(&folder, &sae, None, &info).unwrap();
    let again = load(&folder).unwrap();
    assert_eq!((again.params, again.threshold), (sae.params, sae.threshold));

    let old = |changes: &[(&str, Value)]| {
        let folder = dir.path().join("old");
        copy(
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sae/before_6_standard")),
            &folder,
        );
        edit(&folder.join(CONFIG_FILE), |config| {
            for (key, value) in changes {
                config[*key] = value.clone();
            }
        });
        load(&folder).map(|sae| sae.architecture()).map_err(|err| err.to_string())
    };
    assert_eq!(old(&[("sae_lens_version", Value::from("5.11.0"))]), Ok("standard"));
    assert_eq!(old(&[("normalize_activations", Value::Null)]), Ok("standard"));
    let refused = old(&[("activation_fn_str", Value::from("tanh-relu"))]).unwrap_err();
    assert!(refused.contains("`activation_fn` = \"tanh-relu\", expected \"relu\" or \"topk\""), "{refused}");
    let refused = old(&[("architecture", Value::from("gated"))]).unwrap_err();
    assert!(refused.contains("\"gated\", expected \"standard\", \"topk\" or \"jumprelu\""), "{refused}");
    let refused = old(&[("architecture", Value::from("jumprelu"))]).unwrap_err();
    assert!(refused.contains("\"threshold\""), "{refused}");
    let refused = old(&[("sae_lens_version", Value::from("6.0.0"))]).unwrap_err();
    assert!(refused.contains("lacks `architecture`"), "{refused}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = json(path);
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn saes_from_elsewhere_stand_beside_the_trials() {
    let sweep = TinySweep::new();
    sweep.expect(&["run", "sweep.toml"], 0);
    let (id, folder) = sweep.trials().into_iter().next().unwrap();
    let result = json(&folder.join("result.json"));
    let here = sweep.path("given");
    sweep.expect(&["export", &id, "--to", "given"], 0);
    // The same function as a JumpReLU whose thresholds are 0, and in the settings of an older SAELens.
    let sae = load(&here).unwrap();
    let info = SaveInfo {
        trial: TrialId("0123456789ab".to_owned()),
        store_key: "0123456789abcdef".to_owned(),
        config: config("d_sae = 48"),
        l0: None,
        num_dead_features: None,
        metrics: BTreeMap::new(),
    };
    let threshold = Some(vec![0.0; sae.cfg.d_sae]);
    save(&sweep.path("jump"), &Sae { threshold, ..sae.clone() }, None, &info).unwrap();
    copy(&here, &sweep.path("old"));
    let flat = serde_json::json!({
        "d_in": 24, "d_sae": 48, "dtype": "torch.float32", "hook_name": "blocks.0.hook_mlp_out",
        "apply_b_dec_to_input": sae.cfg.apply_b_dec_to_input
    });
    fs::write(sweep.path("old").join(CONFIG_FILE), flat.to_string()).unwrap();

    let (stdout, stderr) =
        sweep.expect(&["eval", "given", "jump", "old", "--run", "tiny", "--format", "json"], 0);
    assert!(stderr.contains("`old` was trained at blocks.0.hook_mlp_out"), "{stderr}");
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shown["store"], result["store_key"]);
    let rows = shown["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    let scores: Vec<f64> = rows.iter().map(|row| row["metrics"]["ce_loss_score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    for (name, architecture) in [("given", "standard"), ("jump", "jumprelu"), ("old", "standard")] {
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!((&row["architecture"], &row["from"]), (&architecture.into(), &"folder".into()));
        for (metric, value) in row["metrics"].as_object().unwrap() {
            assert_eq!(value, &result["metrics"][metric], "{name}: {metric}");
        }
    }

    let key = result["store_key"].as_str().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/gpt_neo");
    let (stdout, _) = sweep.expect(&["eval", "given", "--store", key, "--model", model], 0);
    assert!(stdout.lines().count() == 2 && stdout.contains("given  folder  standard"), "{stdout}");

    let llama = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/llama");
    let (_, stderr) = sweep.expect(&["eval", "given", "--run", "tiny", "--model", llama], 2);
    assert!(stderr.contains("is not the model of store"), "{stderr}");
    let narrow = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sae/topk");
    let (_, stderr) = sweep.expect(&["eval", "given", narrow, "--run", "tiny"], 2);
    assert!(stderr.contains("is 6 x 12 (d_in x d_sae)") && stderr.contains("of width 24"), "{stderr}");
    edit(&sweep.path("jump").join(CONFIG_FILE), |config| config["d_sae"] = 47.into());
    let (_, stderr) = sweep.expect(&["eval", "jump", "--run", "tiny"], 1);
    assert!(stderr.contains("[24, 48]") && stderr.contains("[24, 47]"), "{stderr}");
    sweep.expect(&["eval", "given"], 2);
}
