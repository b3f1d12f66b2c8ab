//! SAE folders: what is written is read back bit for bit, equal SAEs give equal bytes, SAELens' own folders
//! are read, and a folder that does not fit is refused with what is wrong.

use super::{
    small_sae::{forward, noise},
    small_trial::small_trial,
};
use proptest::prelude::*;
use saesweep::{
    kernels::{Params, Pool},
    sae::{
        self, CONFIG_FILE, Normalizer, SPARSITY_FILE, Sae, SaveInfo, WEIGHTS_FILE, load, load_sparsity, save,
    },
    train::Trainer,
    trial::{Architecture, NormalizeActivations, SaeConfig, SparsityLossMode, TrialConfig, TrialId},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sae");

fn standard() -> Architecture {
    Architecture::Standard { l1_coefficient: 5.0, lp_norm: 1.0, l1_warm_up_steps: 2 }
}

fn topk(k: usize, rescale_acts_by_decoder_norm: bool) -> Architecture {
    Architecture::TopK { k, aux_loss_coefficient: 1.0, rescale_acts_by_decoder_norm }
}

fn abstopk(k: usize, rescale_acts_by_decoder_norm: bool) -> Architecture {
    Architecture::AbsTopK { k, aux_loss_coefficient: 1.0, rescale_acts_by_decoder_norm }
}

fn matching_pursuit() -> Architecture {
    Architecture::MatchingPursuit {
        residual_threshold: 3.5,
        max_iterations: 12,
        stop_on_duplicate_support: true,
    }
}

fn gated() -> Architecture {
    Architecture::Gated { l1_coefficient: 0.5, l1_warm_up_steps: 3 }
}

fn batch_topk(k: f64, rescale_acts_by_decoder_norm: bool) -> Architecture {
    Architecture::BatchTopK {
        k,
        topk_threshold_lr: 0.5,
        aux_loss_coefficient: 1.0,
        rescale_acts_by_decoder_norm,
    }
}

fn matryoshka(widths: &[usize]) -> Architecture {
    Architecture::MatryoshkaBatchTopK {
        k: 8.0,
        topk_threshold_lr: 0.5,
        aux_loss_coefficient: 1.0,
        rescale_acts_by_decoder_norm: true,
        matryoshka_widths: widths.to_vec(),
        use_matryoshka_aux_loss: true,
    }
}

fn jumprelu() -> Architecture {
    Architecture::JumpRelu {
        jumprelu_init_threshold: 0.02,
        jumprelu_bandwidth: 0.1,
        jumprelu_sparsity_loss_mode: SparsityLossMode::Tanh,
        l0_coefficient: 0.3,
        l0_warm_up_steps: 5,
        pre_act_loss_coefficient: 3e-6,
        jumprelu_tanh_scale: 2.0,
        jumprelu_ste_to_input: true,
        target_l0: 0.0,
    }
}

fn config(architecture: Architecture, d_sae: usize) -> TrialConfig {
    let mut config = small_trial();
    (config.sae.architecture, config.sae.d_sae) = (architecture, d_sae);
    config
}

fn info(config: TrialConfig) -> SaveInfo {
    SaveInfo {
        trial: TrialId("0123456789ab".to_owned()),
        store_key: "0123456789abcdef".to_owned(),
        config,
        l0: Some(3.5),
        num_dead_features: Some(1),
        metrics: BTreeMap::from([("l0".to_owned(), 3.25), ("kl_div_score".to_owned(), f64::NAN)]),
    }
}

fn random_sae(cfg: SaeConfig, d_in: usize, seed: u64) -> Sae {
    let n = cfg.d_sae * d_in;
    let has_threshold = matches!(cfg.architecture, Architecture::JumpRelu { .. });
    let is_gated = matches!(cfg.architecture, Architecture::Gated { .. });
    let magnitudes = |seed| if is_gated { noise(cfg.d_sae, seed, 0.4) } else { Vec::new() };
    let is_tied = matches!(cfg.architecture, Architecture::MatchingPursuit { .. });
    let params = Params {
        r_mag: magnitudes(seed + 5),
        b_mag: magnitudes(seed + 6),
        threshold: if has_threshold { noise(cfg.d_sae, seed + 4, 0.2) } else { Vec::new() },
        w_enc: if is_tied { Vec::new() } else { noise(n, seed, 0.5) },
        w_dec: noise(n, seed + 1, 0.5),
        b_enc: if is_tied { vec![0.0; cfg.d_sae] } else { noise(cfg.d_sae, seed + 2, 0.5) },
        b_dec: noise(d_in, seed + 3, 0.5),
    };
    Sae { cfg, d_in, d_out: None, params }
}

fn small(folder: &Path) -> Sae {
    let config = config(standard(), 5);
    let sae = random_sae(config.sae.clone(), 3, 7);
    save(folder, &sae, Some(&[-1.0; 5]), &info(config)).unwrap();
    sae
}

fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read_back(
        d_in in 1_usize..40, d_sae in 1_usize..70, which in 0_usize..6, b_dec: bool, mode in 0_usize..5, seed: u32
    ) {
        let architectures =
            [topk(1, b_dec), standard(), jumprelu(), abstopk(1, b_dec), gated(), matching_pursuit()];
        let mut config = config(architectures[which].clone(), d_sae);
        config.sae.apply_b_dec_to_input = b_dec;
        config.sae.normalize_activations = [
            NormalizeActivations::None,
            NormalizeActivations::ExpectedAverageOnlyIn,
            NormalizeActivations::ConstantNormRescale,
            NormalizeActivations::LayerNorm,
            NormalizeActivations::CovarianceWhitening,
        ][mode];
        let sae = random_sae(config.sae.clone(), d_in, u64::from(seed));
        let sparsity = noise(d_sae, u64::from(seed), 10.0);
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("sae");
        save(&folder, &sae, Some(&sparsity), &info(config)).unwrap();
        prop_assert_eq!(&load(&folder).unwrap(), &sae);
        prop_assert_eq!(load_sparsity(&folder, d_sae).unwrap(), Some(sparsity));
    }
}

#[test]
fn a_second_save_replaces_the_folder_and_gives_the_same_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("sae");
    small(&folder);
    let first = bytes(&folder);
    assert_eq!(first.keys().collect::<Vec<_>>(), [CONFIG_FILE, WEIGHTS_FILE, SPARSITY_FILE]);
    fs::write(folder.join("leftover"), "x").unwrap();
    small(&folder);
    assert_eq!(bytes(&folder), first);
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
}

#[test]
fn the_settings_file_has_what_sae_lens_needs() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("sae");
    small(&folder);
    let text = fs::read_to_string(folder.join(CONFIG_FILE)).unwrap();
    insta::assert_snapshot!(text.replace(env!("CARGO_PKG_VERSION"), "VERSION"), @r#"
    {
      "apply_b_dec_to_input": false,
      "architecture": "standard",
      "d_in": 3,
      "d_sae": 5,
      "device": "cpu",
      "dtype": "float32",
      "metadata": {
        "context_size": 16,
        "dataset_path": "org/data",
        "disable_concat_sequences": false,
        "exclude_special_tokens": false,
        "hook_head_index": null,
        "hook_name": "blocks.0.hook_mlp_out",
        "l0": 3.5,
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": {
          "center_writing_weights": false
        },
        "model_name": "org/model",
        "num_dead_features": 1,
        "prepend_bos": true,
        "sae_lens_training_version": null,
        "sae_lens_version": "6.54.12",
        "saesweep_metrics": {
          "l0": 3.25
        },
        "saesweep_store": "0123456789abcdef",
        "saesweep_trial": "0123456789ab",
        "saesweep_version": "VERSION",
        "seqpos_slice": [
          null
        ],
        "sequence_separator_token": "bos",
        "training_architecture": "standard",
        "training_architecture_details": {
          "decoder_init_norm": 0.1,
          "l1_coefficient": 5.0,
          "l1_warm_up_steps": 2,
          "lp_norm": 1.0
        }
      },
      "normalize_activations": "none",
      "reshape_activations": "none"
    }
    "#);
}

#[test]
fn folders_of_sae_lens_are_read() {
    for name in [
        "standard",
        "standard_bfloat16",
        "topk",
        "jumprelu_trained",
        "gated",
        "abstopk",
        "before_6_standard",
        "before_6_topk",
        "matching_pursuit",
        "matching_pursuit_without_b_dec",
    ] {
        let folder = Path::new(FIXTURES).join(name);
        let sae = load(&folder).unwrap();
        let file = fs::read(folder.join("forward.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let get =
            |name: &str| -> Vec<f32> { bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data()) };
        let (acts, x_hat) = forward(&sae, &get("x"));
        for (what, got, want) in [("acts", acts, get("acts")), ("x_hat", x_hat, get("x_hat"))] {
            let largest = want.iter().fold(0.0_f32, |largest, want| largest.max(want.abs()));
            let off = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0_f32, f32::max);
            println!("{name}: {what} deviate by {:.1e} of the largest", off / largest);
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 2e-6 * want.abs().max(1.0), "{name}, {what}: {got} {want}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_both_sides() {
    let edit_json = |change: &dyn Fn(&mut Value)| {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("sae");
        small(&folder);
        let path = folder.join(CONFIG_FILE);
        let mut value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(&path, value.to_string()).unwrap();
        let message = load(&folder).unwrap_err().to_string();
        message.replace(folder.to_str().unwrap(), "SAE")
    };
    let edit_weights = |change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("sae");
        small(&folder);
        let path = folder.join(WEIGHTS_FILE);
        fs::write(&path, change(fs::read(&path).unwrap())).unwrap();
        let message = load(&folder).unwrap_err().to_string();
        message.replace(folder.to_str().unwrap(), "SAE")
    };
    let tensors = |names: &'static [&'static str], dtype: Dtype| {
        move |_: Vec<u8>| {
            let data = vec![0_u8; 240];
            let views = names.iter().map(|&name| {
                let shape = match name {
                    "W_dec" => vec![5, 3],
                    "W_enc" => vec![3, 5],
                    "b_enc" => vec![5],
                    _ => vec![3],
                };
                let n = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                (name, TensorView::new(dtype, shape, &data[..n]).unwrap())
            });
            safetensors::serialize(views, None).unwrap()
        }
    };
    let messages = [
        edit_json(&|v| v["architecture"] = json!("temporal")),
        edit_json(&|v| drop(v.as_object_mut().unwrap().remove("architecture"))),
        edit_json(&|v| drop(v.as_object_mut().unwrap().remove("d_in"))),
        edit_json(&|v| v["d_sae"] = json!(-4)),
        edit_json(&|v| v["architecture"] = json!("topk")),
        edit_json(&|v| v["apply_b_dec_to_input"] = json!("yes")),
        edit_json(&|v| v["normalize_activations"] = json!("softly")),
        edit_json(&|v| *v = json!([1])),
        edit_json(&|v| v["d_sae"] = json!(6)),
        edit_json(&|v| v["d_in"] = json!(4)),
        edit_weights(&|bytes| bytes[..bytes.len() - 1].to_vec()),
        edit_weights(&|_| Vec::new()),
        edit_weights(&tensors(&["W_dec", "W_enc", "b_dec"], Dtype::F32)),
        edit_weights(&tensors(&["W_dec", "W_enc", "b_dec", "b_enc", "threshold"], Dtype::F32)),
        edit_weights(&tensors(&["W_dec", "W_enc", "b_dec", "b_enc"], Dtype::I32)),
        load(Path::new("/nowhere/at/all")).unwrap_err().to_string(),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    SAE/cfg.json has `architecture` = "temporal", expected "standard", "gated", "topk", "abstopk", "jumprelu" or "matching_pursuit"
    SAE/cfg.json lacks `architecture`
    SAE/cfg.json lacks `d_in`
    SAE/cfg.json has `d_sae` = -4, expected a positive whole number
    SAE/cfg.json lacks `k`
    SAE/cfg.json has `apply_b_dec_to_input` = "yes", expected true or false
    SAE/cfg.json has `normalize_activations` = "softly", expected one of SAELens' modes, such as "none" or "layer_norm"
    SAE/cfg.json is not a JSON object: it is another kind of value
    SAE/sae_weights.safetensors: `W_enc` has shape [3, 5], but the settings give [3, 6]
    SAE/sae_weights.safetensors: `W_enc` has shape [3, 5], but the settings give [4, 5]
    SAE/sae_weights.safetensors: incomplete metadata, file not fully covered
    SAE/sae_weights.safetensors: header too small
    SAE/sae_weights.safetensors holds the tensors ["W_dec", "W_enc", "b_dec"], expected ["W_dec", "W_enc", "b_dec", "b_enc"]
    SAE/sae_weights.safetensors holds the tensors ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"], expected ["W_dec", "W_enc", "b_dec", "b_enc"]
    SAE/sae_weights.safetensors: `W_enc` is I32, expected F32, F64, F16 or BF16
    /nowhere/at/all/cfg.json: No such file or directory (os error 2)
    "#);
}

/// Writes SAEs with what this program makes of some activations, for `tests/sae_lens_roundtrip.py`.
#[test]
fn folders_for_the_sae_lens_script_are_written() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sae_lens_roundtrip");
    let (d_in, d_sae, n) = (48, 160, 64);
    let pool = Pool::new(1);
    let x: Vec<f32> = noise(n * d_in, 5, 3.0).iter().map(|x| x + 0.5).collect();
    let cases = [
        ("standard", standard(), false, NormalizeActivations::None),
        ("standard_b_dec", standard(), true, NormalizeActivations::ExpectedAverageOnlyIn),
        ("standard_layer_norm", standard(), false, NormalizeActivations::LayerNorm),
        ("standard_constant_norm", standard(), true, NormalizeActivations::ConstantNormRescale),
        ("topk", topk(8, true), false, NormalizeActivations::ExpectedAverageOnlyIn),
        ("topk_without_rescaling", topk(8, false), true, NormalizeActivations::None),
        ("abstopk", abstopk(8, true), true, NormalizeActivations::ExpectedAverageOnlyIn),
        ("batchtopk", batch_topk(7.5, true), false, NormalizeActivations::ExpectedAverageOnlyIn),
        ("batchtopk_without_rescaling", batch_topk(8.0, false), true, NormalizeActivations::None),
        ("matryoshka", matryoshka(&[40, d_sae]), true, NormalizeActivations::ExpectedAverageOnlyIn),
        ("jumprelu", jumprelu(), false, NormalizeActivations::ExpectedAverageOnlyIn),
        ("jumprelu_layer_norm", jumprelu(), true, NormalizeActivations::LayerNorm),
        ("gated", gated(), false, NormalizeActivations::ExpectedAverageOnlyIn),
        ("gated_b_dec", gated(), true, NormalizeActivations::None),
        ("matching_pursuit", matching_pursuit(), false, NormalizeActivations::ExpectedAverageOnlyIn),
        ("matching_pursuit_b_dec", matching_pursuit(), true, NormalizeActivations::ExpectedAverageOnlyIn),
        ("matching_pursuit_layer_norm", matching_pursuit(), true, NormalizeActivations::LayerNorm),
    ];
    for (name, architecture, b_dec, mode) in cases {
        let mut config = config(architecture, d_sae);
        config.sae.apply_b_dec_to_input = b_dec;
        config.sae.normalize_activations = mode;
        config.train.batch_size = n;
        if config.sae.architecture == matching_pursuit() {
            config.sae.decoder_init_norm = 1.0;
        }
        if let Architecture::TopK { aux_loss_coefficient, .. } = &mut config.sae.architecture {
            *aux_loss_coefficient = 0.0;
        }
        let normalizer = Normalizer::new(mode, d_in, 12.0, &[], &[]).unwrap();
        let params = sae::init(&config.sae, d_in, 1);
        let mut trainer = Trainer::new(&config.sae, &config.train, d_in, params, normalizer, &pool);
        for _ in 0..10 {
            assert!(trainer.step(&pool, &x).unwrap().is_finite());
        }
        let trained = trainer.finish(&pool).unwrap();
        let folder = root.join(name);
        save(&folder, &trained.sae, Some(&trained.sparsity), &info(config)).unwrap();
        let (acts, x_hat) = forward(&load(&folder).unwrap(), &x);
        let tensor = |shape: [usize; 2], data: &[f32]| {
            let bytes: Vec<u8> = bytemuck::cast_slice(data).to_vec();
            (shape.to_vec(), bytes)
        };
        let parts = [
            ("x", tensor([n, d_in], &x)),
            ("acts", tensor([n, d_sae], &acts)),
            ("x_hat", tensor([n, d_in], &x_hat)),
        ];
        let views = parts
            .iter()
            .map(|(name, (shape, data))| (*name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.join("forward.safetensors")).unwrap();
    }
}
