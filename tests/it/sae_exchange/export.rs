//! Folders for SAELens and dictionary_learning.

use super::{assert_close, config, forward, info, json, names, noise, random_params};
use crate::tiny_sweep::TinySweep;
use saesweep::{
    sae::{
        CONFIG_FILE, DICTIONARY_CONFIG_FILE, DICTIONARY_FILE, ExportError, ExportFormat, ExportInfo,
        RUNNER_FILE, SPARSITY_FILE, Sae, WEIGHTS_FILE, export, fold_decoder_norms, load, save,
    },
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

fn write_forward(folder: &Path, x: &[f32], d_in: usize, acts: &[f32], x_hat: &[f32]) {
    let n = x.len() / d_in;
    let parts = [("x", x, d_in), ("acts", acts, acts.len() / n), ("x_hat", x_hat, d_in)];
    let views = parts.map(|(name, data, width)| {
        (name, TensorView::new(Dtype::F32, vec![n, width], bytemuck::cast_slice(data)).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("forward.safetensors")).unwrap();
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
        let info = info(config.clone(), metrics.clone());
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
