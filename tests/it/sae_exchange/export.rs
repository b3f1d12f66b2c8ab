//! Folders for SAELens and dictionary_learning.

use super::{assert_close, config, info, json, names, random_params};
use crate::small_sae::{forward, noise};
use crate::tiny_sweep::TinySweep;
use saesweep::{
    kernels::Pool,
    sae::{
        CONFIG_FILE, DICTIONARY_CONFIG_FILE, DICTIONARY_FILE, ExportError, ExportFormat, ExportInfo,
        Normalizer, RUNNER_FILE, SPARSITY_FILE, Sae, WEIGHTS_FILE, export, load, save,
    },
    train::Trainer,
    trial::{TrialConfig, TrialId},
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
        let params = random_params(&config.sae, d_in, 9);
        let pool = Pool::new(1);
        let mut trainer = Trainer::new(&config.sae, &config.train, d_in, params, Normalizer::Identity, &pool);
        trainer.topk_threshold = 0.9;
        // As training leaves it: decoder norms folded, a BatchTopK turned into a JumpReLU.
        let mut sae = trainer.finish(&pool).unwrap().sae;
        // Scaling by rows, which is not done here, is left to the SAE.
        sae.cfg.normalize_activations = config.sae.normalize_activations;
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

/// What SAEs are called, their settings, and dictionary_learning's class for them, if it has one.
const EXPORTED: [(&str, &str, Option<&str>); 13] = [
    ("standard", "apply_b_dec_to_input = false", Some("AutoEncoder")),
    ("standard_b_dec", "l1_coefficient = 2.5", Some("AutoEncoder")),
    ("gated", "architecture = \"gated\"\napply_b_dec_to_input = false", Some("GatedAutoEncoder")),
    ("gated_b_dec", "architecture = \"gated\"", Some("GatedAutoEncoder")),
    ("topk", "architecture = \"topk\"\nk = 7\napply_b_dec_to_input = false", Some("AutoEncoderTopK")),
    (
        "topk_without_rescaling",
        "architecture = \"topk\"\nk = 7\nrescale_acts_by_decoder_norm = false",
        Some("AutoEncoderTopK"),
    ),
    ("batchtopk", "architecture = \"batchtopk\"\nk = 7\napply_b_dec_to_input = false", Some("BatchTopKSAE")),
    (
        "batchtopk_without_rescaling",
        "architecture = \"batchtopk\"\nk = 7\nrescale_acts_by_decoder_norm = false",
        Some("BatchTopKSAE"),
    ),
    ("batchtopk_fraction", "architecture = \"batchtopk\"\nk = 7.5", Some("JumpReluAutoEncoder")),
    (
        "matryoshka",
        "architecture = \"matryoshka_batchtopk\"\nk = 7\nmatryoshka_widths = [10, 25, 60]\n\
         apply_b_dec_to_input = false",
        Some("MatryoshkaBatchTopKSAE"),
    ),
    ("jumprelu", "architecture = \"jumprelu\"\napply_b_dec_to_input = false", Some("JumpReluAutoEncoder")),
    ("jumprelu_b_dec", "architecture = \"jumprelu\"", Some("JumpReluAutoEncoder")),
    ("abstopk", "architecture = \"abstopk\"\nk = 7", None),
];

fn exported(own: &str) -> Trained {
    Trained::new(&format!("d_sae = 60\n{own}"))
}

#[test]
fn an_export_for_sae_lens_is_the_sae_and_the_configuration() {
    for (name, settings, _) in EXPORTED {
        let trained = exported(settings);
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

/// What dictionary_learning's classes compute, written out.
fn dictionary_forward(folder: &Path, class: &str, x: &[f32]) -> Vec<f32> {
    let bytes = fs::read(folder.join(DICTIONARY_FILE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (f, d) = (60, 24);
    let floats = |name: &str, shape: &[usize]| -> Vec<f32> {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, shape), "{name}");
        bytemuck::pod_collect_to_vec(tensor.data())
    };
    let int = |name: &str| -> i32 { bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data())[0] };
    let names = |names: &[&str]| {
        let mut found = tensors.names();
        found.sort_unstable();
        assert_eq!(found, names, "{class}");
    };
    let turned = |matrix: Vec<f32>, rows: usize, cols: usize| -> Vec<f32> {
        (0..rows * cols).map(|at| matrix[(at % rows) * cols + at / rows]).collect()
    };
    let linear = |bias: &str| {
        let decoder = turned(floats("decoder.weight", &[d, f]), d, f);
        (floats("encoder.weight", &[f, d]), decoder, floats(bias, &[d]))
    };
    let matrices =
        || (turned(floats("W_enc", &[d, f]), d, f), floats("W_dec", &[f, d]), floats("b_dec", &[d]));
    let (encoder, decoder, b_dec) = match class {
        "AutoEncoder" => linear("bias"),
        "GatedAutoEncoder" => linear("decoder_bias"),
        "AutoEncoderTopK" | "BatchTopKSAE" => linear("b_dec"),
        _ => matrices(),
    };
    let products = |x: &[f32], minus: &[f32]| -> Vec<f32> {
        (0..f).map(|i| (0..d).map(|j| (x[j] - minus[j]) * encoder[i * d + j]).sum()).collect()
    };
    let plus = |products: Vec<f32>, bias: Vec<f32>| -> Vec<f32> {
        products.iter().zip(bias).map(|(product, bias)| product + bias).collect()
    };
    let above = |acts: Vec<f32>, least: &[f32]| -> Vec<f32> {
        let kept = |(i, act): (usize, f32)| if act > least[i % least.len()] { act.max(0.0) } else { 0.0 };
        acts.into_iter().enumerate().map(kept).collect()
    };
    let encode = |x: &[f32]| -> Vec<f32> {
        let centred = || products(x, &b_dec);
        match class {
            "AutoEncoder" => {
                names(&["bias", "decoder.weight", "encoder.bias", "encoder.weight"]);
                above(plus(centred(), floats("encoder.bias", &[f])), &[0.0])
            }
            "GatedAutoEncoder" => {
                names(&[
                    "decoder.weight",
                    "decoder_bias",
                    "encoder.weight",
                    "gate_bias",
                    "mag_bias",
                    "r_mag",
                ]);
                let gates = plus(centred(), floats("gate_bias", &[f]));
                let scale = floats("r_mag", &[f]);
                let scaled = centred().iter().zip(scale).map(|(product, r)| product * r.exp()).collect();
                let magnitudes = plus(scaled, floats("mag_bias", &[f]));
                gates
                    .iter()
                    .zip(magnitudes)
                    .map(|(gate, m)| if *gate > 0.0 { m.max(0.0) } else { 0.0 })
                    .collect()
            }
            "AutoEncoderTopK" => {
                names(&["b_dec", "decoder.weight", "encoder.bias", "encoder.weight", "k", "threshold"]);
                assert_eq!(floats("threshold", &[]), [-1.0]);
                let acts = above(plus(centred(), floats("encoder.bias", &[f])), &[0.0]);
                let mut sorted = acts.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let least = sorted[int("k") as usize - 1];
                acts.into_iter().map(|act| if act >= least { act } else { 0.0 }).collect()
            }
            "BatchTopKSAE" => {
                names(&["b_dec", "decoder.weight", "encoder.bias", "encoder.weight", "k", "threshold"]);
                assert_eq!(int("k"), 7);
                above(plus(centred(), floats("encoder.bias", &[f])), &floats("threshold", &[]))
            }
            "MatryoshkaBatchTopKSAE" => {
                names(&["W_dec", "W_enc", "b_dec", "b_enc", "group_sizes", "k", "threshold"]);
                let groups = tensors.tensor("group_sizes").unwrap();
                assert_eq!(bytemuck::pod_collect_to_vec::<u8, i64>(groups.data()), [10, 15, 35]);
                above(plus(centred(), floats("b_enc", &[f])), &floats("threshold", &[]))
            }
            "JumpReluAutoEncoder" => {
                names(&["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]);
                above(plus(products(x, &[0.0; 24]), floats("b_enc", &[f])), &floats("threshold", &[f]))
            }
            other => panic!("{other} is none of its classes"),
        }
    };
    let decode = |acts: Vec<f32>| -> Vec<f32> {
        (0..d).map(|j| (0..f).map(|i| acts[i] * decoder[i * d + j]).sum::<f32>() + b_dec[j]).collect()
    };
    x.chunks_exact(d).flat_map(|x| decode(encode(x))).collect()
}

#[test]
fn an_export_for_dictionary_learning_is_the_same_function() {
    for (name, settings, class) in EXPORTED {
        let trained = exported(settings);
        let to = for_python(&format!("dictionary_{name}"));
        let files = trained.export(&to, ExportFormat::DictionaryLearning);
        let Some(class) = class else {
            let refused = files.unwrap_err();
            assert!(refused.is_refusal() && refused.to_string().contains("\"abstopk\""), "{refused}");
            assert!(!to.exists());
            continue;
        };
        assert_eq!(files.unwrap(), [DICTIONARY_CONFIG_FILE, DICTIONARY_FILE]);
        let trainer = &json(&to.join(DICTIONARY_CONFIG_FILE))["trainer"];
        assert_eq!((&trainer["dict_class"], &trainer["layer"]), (&Value::from(class), &Value::from(3)));
        let x = noise(40 * 24, 3, 2.0);
        let (acts, x_hat) = forward(&trained.sae, &x);
        assert_close(name, &dictionary_forward(&to, class, &x), &x_hat, 2e-6);
        let n_active = acts.iter().filter(|act| **act != 0.0).count();
        assert!(n_active > 40 && n_active < acts.len() / 2 + 300, "{name}: {n_active} of {}", acts.len());
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
