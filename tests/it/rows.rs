//! Stores of rows that no language model made: toy data and files of activations, from settings to metrics.

use half::{bf16, f16};
use saesweep::{
    eval::evaluate,
    harvest::ensure_row_store,
    kernels::{Params, Pool},
    sae::Sae,
    source::resolve,
    store::{self, Store},
    trial::TrialConfig,
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

fn config(activations: Value, d_sae: usize, dtype: &str) -> TrialConfig {
    serde_json::from_value(json!({
        "activations": activations,
        "store": { "tokens": 3000, "dtype": dtype, "shuffle_buffer_rows": 700, "shuffle_seed": 5 },
        "sae": {
            "architecture": "standard", "d_sae": d_sae, "apply_b_dec_to_input": false,
            "normalize_activations": "none", "decoder_init_norm": 0.1, "l1_coefficient": 1.0, "lp_norm": 1.0,
            "l1_warm_up_steps": 0
        },
        "train": {
            "tokens": 256, "batch_size": 16, "lr": 1e-3, "lr_end": 1e-4, "lr_scheduler_name": "constant",
            "lr_warm_up_steps": 0, "lr_decay_steps": 0, "n_restart_cycles": 1, "adam_beta1": 0.9,
            "adam_beta2": 0.999, "seed": 1, "data_seed": 1, "dead_feature_window": 10,
            "feature_sampling_window": 10
        },
        "eval": { "exclude_special_tokens": false }
    }))
    .unwrap()
}

fn toy(noise: f64) -> TrialConfig {
    let activations = json!({
        "source": "toy", "n_features": 24, "d_in": 24, "mean_active": 3.0, "probability_power": 0.3,
        "norm_power": 0.1, "spread": 0.5, "correlation": 0.2, "group_size": 3, "noise": noise, "seed": 9,
        "eval_rows": 5000
    });
    config(activations, 24, "float32")
}

fn files(tensor: &str, eval_fraction: f64, dtype: &str) -> TrialConfig {
    let activations = json!({
        "source": "files", "files": ["acts"], "tensor": tensor, "eval_fraction": eval_fraction, "eval_rows": 1000
    });
    config(activations, 8, dtype)
}

fn make(stores: &Path, files: &[PathBuf], cfg: &TrialConfig) -> Store {
    let (_, dir) = ensure_row_store(stores, files, cfg, &mut |_| ControlFlow::Continue(())).unwrap();
    Store::open_dir(&dir).unwrap()
}

fn failure(files: &[PathBuf], cfg: &TrialConfig) -> String {
    let folder = tempfile::tempdir().unwrap();
    ensure_row_store(folder.path(), files, cfg, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
}

/// All training rows, in the order of their first number.
fn rows(store: &Store) -> Vec<Vec<f32>> {
    let mut values = vec![0.0; store.rows() as usize * store.width()];
    store.read_rows(0, &mut values);
    let mut rows: Vec<Vec<f32>> = values.chunks_exact(store.width()).map(<[f32]>::to_vec).collect();
    rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
    rows
}

#[test]
fn toy_stores_hold_the_truth_and_verify_watches_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let cfg = toy(0.05);
    let store = make(folder.path(), &[], &cfg);
    assert_eq!((store.rows(), store.width()), (3000, 24));
    let eval = store.eval().unwrap();
    assert_eq!((eval.sequences, eval.context_size, eval.tokens.len()), (5000, 1, 0));
    let truth = store.truth().unwrap().unwrap();
    assert_eq!((truth.features.len(), truth.eval_active.len()), (24 * 24, 5000));
    assert!(store::verify(store.dir()).unwrap().is_intact());
    let key = store.header().key.clone();
    // Found again; another seed is another store.
    assert_eq!(make(folder.path(), &[], &cfg).header().key, key);
    let other = toy(0.06);
    assert_ne!(make(folder.path(), &[], &other).header().key, key);

    let path = store.dir().join("truth.safetensors");
    drop(store);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let report = store::verify(&folder.path().join(&key)).unwrap();
    assert!(report.problems.iter().any(|problem| problem.to_string().contains("truth.safetensors")));
}

#[test]
fn a_broken_off_build_gives_the_same_store() {
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cfg = toy(0.0);
    let expected = rows(&make(whole.path(), &[], &cfg));
    let mut words = 0;
    let stopped = ensure_row_store(broken.path(), &[], &cfg, &mut |_| {
        words += 1;
        if words > 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(stopped.unwrap_err().to_string().contains("interrupted"));
    assert_eq!(rows(&make(broken.path(), &[], &cfg)), expected);
}

#[test]
fn an_sae_made_of_the_true_features_recovers_them_all() {
    let folder = tempfile::tempdir().unwrap();
    let cfg = toy(0.0);
    let store = make(folder.path(), &[], &cfg);
    let truth = store.truth().unwrap().unwrap();
    // The encoder of an orthonormal dictionary is its transpose; here the nearest such thing, row by row.
    let mut params = Params::zeros(24, 24);
    params.w_dec = truth.features.iter().map(|x| 2.0 * x).collect();
    params.w_enc = truth.features.to_vec();
    let sae = Sae { cfg: cfg.sae.clone(), d_in: 24, params };
    let found = evaluate(None, &store, &sae, &cfg.eval, &Pool::new(1)).unwrap().metrics;
    assert!((found["mmcs"] - 1.0).abs() < 1e-6, "{found:?}");
    assert_eq!((found["recovered_share"], found["uniqueness"]), (1.0, 1.0));
    assert!((found["true_l0"] - 3.0).abs() < 0.1, "{found:?}");
    assert!(found.keys().all(|name| !name.starts_with("ce_") && !name.starts_with("kl_")), "{found:?}");
    assert!(found.contains_key("explained_variance") && found.contains_key("l0"));
    assert_eq!(evaluate(None, &store, &sae, &cfg.eval, &Pool::new(3)).unwrap().metrics, found);
}

fn write_tensors(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// As `numpy.save` writes it.
fn write_npy(path: &Path, descr: &str, fortran: &str, shape: &str, data: &[u8]) {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

/// Numbers that every format holds exactly: row r of width 3 is (r, r + 0.5, -r).
fn value(at: usize) -> f32 {
    let row = (at / 3) as f32;
    [row, row + 0.5, -row][at % 3]
}

fn numbers(rows: std::ops::Range<usize>) -> impl Iterator<Item = f32> {
    (rows.start * 3..rows.end * 3).map(value)
}

#[test]
fn every_format_gives_the_same_rows_and_the_last_are_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let acts = folder.path().join("acts");
    fs::create_dir(&acts).unwrap();
    let f16s = |rows| numbers(rows).flat_map(|x| f16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>();
    let bf16s = |rows| numbers(rows).flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>();
    let f32s = |rows| numbers(rows).flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let f64s = |rows| numbers(rows).flat_map(|x| f64::from(x).to_le_bytes()).collect::<Vec<u8>>();
    write_npy(&acts.join("a.npy"), "<f2", "False", "(20, 3)", &f16s(0..20));
    write_npy(&acts.join("b.NPY"), "<f4", "False", "(20, 3)", &f32s(20..40));
    write_npy(&acts.join("c.npy"), "<f8", "False", "(20, 3)", &f64s(40..60));
    let more = ("more", Dtype::I64, vec![1], vec![0; 8]);
    write_tensors(&acts.join("d.safetensors"), &[("x", Dtype::F16, vec![20, 3], f16s(60..80)), more]);
    write_tensors(&acts.join("e.safetensors"), &[("x", Dtype::BF16, vec![20, 3], bf16s(80..100))]);
    write_tensors(&acts.join("f.safetensors"), &[("x", Dtype::F32, vec![20, 3], f32s(100..120))]);
    fs::write(acts.join("README.md"), "not data").unwrap();
    let found = resolve(&[acts]).unwrap();
    assert_eq!(found.len(), 6);

    let store = make(folder.path(), &found, &files("x", 0.1, "float32"));
    let expected: Vec<Vec<f32>> =
        numbers(0..108).collect::<Vec<_>>().chunks(3).map(<[f32]>::to_vec).collect();
    assert_eq!(rows(&store), expected);
    assert_eq!(store.eval().unwrap().acts, numbers(108..120).collect::<Vec<_>>());
    assert_eq!(store.truth().unwrap(), None);
    // It is shuffled, and a store of another number format holds the same.
    let mut first = [0.0; 30];
    store.read_rows(0, &mut first);
    assert_ne!(first.to_vec(), numbers(0..10).collect::<Vec<_>>());
    assert_eq!(rows(&make(folder.path(), &found, &files("x", 0.1, "float16"))), expected);

    // Fewer rows than there are: the first ones; and the held-out part is capped.
    let mut few = files("x", 0.5, "float32");
    few.store.tokens = 50;
    let saesweep::trial::ActivationSource::Files(config) = &mut few.source else { panic!("files") };
    config.eval_rows = 7;
    let store = make(folder.path(), &found, &few);
    assert_eq!(rows(&store), expected[..50]);
    assert_eq!(store.eval().unwrap().acts, numbers(60..67).collect::<Vec<_>>());
}

#[test]
fn documents_are_held_out_whole() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.npy", "b.npy"].map(|name| folder.path().join(name));
    let data = |rows| numbers(rows).flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    write_npy(&paths[0], "<f4", "False", "(3, 10, 3)", &data(0..30));
    write_npy(&paths[1], "<f4", "False", "(2, 6, 3)", &data(30..42));
    let store = make(folder.path(), &paths, &files("", 0.25, "float32"));
    // A quarter of five documents, rounded up, is two: those of the second file.
    assert_eq!(store.rows(), 30);
    assert_eq!(store.eval().unwrap().acts, numbers(30..42).collect::<Vec<_>>());
    // The order of the files decides what is held out, so it is part of the identity.
    let reversed = [paths[1].clone(), paths[0].clone()];
    let other = make(folder.path(), &reversed, &files("", 0.25, "float32"));
    assert_ne!(other.header().key, store.header().key);
    assert_eq!(other.rows(), 22);
}

#[test]
fn what_cannot_be_read_is_said_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let f32s = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let cfg = files("", 0.1, "float32");
    let check = |paths: &[PathBuf], cfg: &TrialConfig, parts: &[&str]| {
        let message = failure(paths, cfg);
        for part in parts {
            assert!(message.contains(part), "{message} lacks {part}");
        }
    };
    let good = at("good.npy");
    write_npy(&good, "<f4", "False", "(20, 3)", &f32s(&numbers(0..20).collect::<Vec<_>>()));
    let npy = |descr: &str, fortran: &str, shape: &str, data: &[u8]| {
        write_npy(&at("bad.npy"), descr, fortran, shape, data);
        [at("bad.npy")]
    };
    check(&npy("<f4", "True", "(2, 2)", &[0; 16]), &cfg, &["bad.npy", "Fortran"]);
    check(&npy(">f4", "False", "(2, 2)", &[0; 16]), &cfg, &["'>f4'", "little-endian"]);
    check(&npy("<i8", "False", "(2, 2)", &[0; 32]), &cfg, &["'<i8'"]);
    check(&npy("<f4", "False", "(2, 2)", &[0; 12]), &cfg, &["12 bytes", "needs 16"]);
    check(&npy("<f4", "False", "(8,)", &[0; 32]), &cfg, &["shape [8]", "[rows, d]"]);
    check(&npy("<f4", "False", "(0, 4)", &[]), &cfg, &["shape [0, 4]"]);
    check(&npy("<f4", "False", "(1, 4)", &[0; 16]), &cfg, &["1 rows", "at least two"]);
    check(&npy("<f4", "False", "(99999999999, 99999999999)", &[0; 16]), &cfg, &["beyond any memory"]);
    let [wide] = npy("<f4", "False", "(5, 4)", &[0; 80]);
    check(&[good.clone(), wide], &cfg, &["widths", "[5, 4]", "[20, 3]", "good.npy"]);
    let [deep] = npy("<f4", "False", "(5, 2, 3)", &[0; 120]);
    check(&[good.clone(), deep], &cfg, &["documents"]);
    let mut values: Vec<f32> = numbers(0..20).collect();
    values[7 * 3 + 2] = f32::NAN;
    let [nan] = npy("<f4", "False", "(20, 3)", &f32s(&values));
    check(&[good.clone(), nan], &cfg, &["bad.npy", "NaN in row 7, dimension 2"]);
    fs::write(at("torn.npy"), b"\x93NUM").unwrap();
    check(&[at("torn.npy")], &cfg, &["torn.npy", "magic word"]);

    let tensors = at("two.safetensors");
    let one = |name, dtype| (name, dtype, vec![20, 3], vec![0; 20 * 3 * 4]);
    write_tensors(&tensors, &[one("a", Dtype::F32), one("b", Dtype::I32)]);
    let two = std::slice::from_ref(&tensors);
    check(two, &cfg, &["2 tensors", "activations.tensor", "a, b"]);
    check(two, &files("c", 0.1, "float32"), &["no tensor `c`", "a, b"]);
    check(two, &files("b", 0.1, "float32"), &["I32 in tensor `b`"]);
    fs::write(at("torn.safetensors"), b"xx").unwrap();
    check(&[at("torn.safetensors")], &cfg, &["torn.safetensors", "not readable"]);
    let mut large = files("", 0.1, "float32");
    large.train.batch_size = 500;
    check(&[good], &large, &["18 rows, fewer than train.batch_size = 500"]);

    let unresolved = |path: &str| resolve(&[at(path)]).unwrap_err().to_string();
    assert!(unresolved("nowhere").contains("do not exist"));
    fs::write(at("x.csv"), "").unwrap();
    assert!(unresolved("x.csv").contains("neither .safetensors nor .npy"));
    fs::create_dir(at("empty")).unwrap();
    assert!(unresolved("empty").contains("holds no"));
}
