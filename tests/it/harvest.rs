//! Model + data → store, with tiny models.

use super::{
    small_harvest::{hooked_trial, numbers, stories},
    small_trial::{data_of, model_of},
};
use candle_core::{Device, Tensor};
use saesweep::{
    data::{Encode, Packed, pack},
    harvest::{
        ContentHashes, HarvestError, HarvestPhase, HarvestProgress, ensure_store, store_identity,
        store_identity_cached,
    },
    model::{HookState, Model, ModelTokenizer, per_token_kl, per_token_loss},
    store::Store,
    trial::{SequenceSeparator, StoreDtype, TrialConfig},
};
use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

fn model_folder(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model")).join(name)
}

fn quietly(_: HarvestProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

struct Plain<'a>(&'a ModelTokenizer);

impl Encode for Plain<'_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.0.encode(text).map_err(|error| error.to_string())
    }
    fn bos(&self) -> Option<u32> {
        self.0.bos_id()
    }
    fn eos(&self) -> Option<u32> {
        self.0.eos_id()
    }
    fn sep(&self) -> Option<u32> {
        self.0.sep_id()
    }
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
}

fn packed(model: &Model, files: &[PathBuf], cfg: &TrialConfig) -> Packed {
    let encode = Plain(model.tokenizer().unwrap());
    let (_, data) = cfg.source.model().unwrap();
    let wanted = cfg.store.tokens.div_ceil(data.context_size as u64) as usize;
    pack(files, data, wanted, Some(&encode), model.config().vocab_size).unwrap()
}

/// Rows as bits, sorted, so that two orders of the same rows are equal.
fn sorted_rows(rows: &[f32], width: usize) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> =
        rows.chunks(width).map(|row| row.iter().map(|x| x.to_bits()).collect()).collect();
    rows.sort();
    rows
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{what}: {found} {expected}");
    }
}

#[test]
fn store_holds_the_activations_of_the_packed_data() {
    for (family, hook) in [
        ("gpt_neo", "blocks.1.hook_mlp_out"),
        ("llama", "blocks.0.hook_resid_post"),
        ("qwen2", "blocks.0.attn.hook_z"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (files, cfg) = (stories(folder.path()), hooked_trial(hook, ""));
        let stores = folder.path().join("stores");
        let (key, dir) = ensure_store(&stores, &model_folder(family), &files, &cfg, &mut quietly).unwrap();
        assert_eq!(key, store_identity(&model_folder(family), &files, &cfg).unwrap().key());
        assert_eq!(dir, stores.join(&key));
        let store = Store::open(&stores, &key).unwrap();
        let model = Model::load(&model_folder(family)).unwrap();
        let packed = packed(&model, &files, &cfg);
        // 205 rows asked for: 21 sequences of 10.
        assert_eq!((store.rows(), packed.n_train()), (210, 21), "{family}");
        assert!(packed.n_eval() >= 2, "{family}: {}", packed.n_eval());

        let point = model.config().hook(hook).unwrap();
        let width = model.config().hook_width(&point);
        assert_eq!(store.width(), width);
        let tensor =
            |tokens: &[u32]| Tensor::from_slice(tokens, (tokens.len() / 10, 10), &Device::Cpu).unwrap();
        let mut rows = vec![0.0; 210 * width];
        store.read_rows(0, &mut rows);
        let expected: Vec<f32> = packed
            .train
            .chunks(10)
            .flat_map(|sequence| numbers(&model.run_to_hook(&tensor(sequence), &point).unwrap().acts))
            .collect();
        let (found, expected) = (sorted_rows(&rows, width), sorted_rows(&expected, width));
        let (found, expected) = (found.concat(), expected.concat());
        let differences =
            found.iter().zip(&expected).map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs());
        assert!(differences.fold(0.0, f32::max) < 1e-5, "{family}");
        // And they are shuffled.
        assert_ne!(
            sorted_rows(&rows[..10 * width], width),
            sorted_rows(&rows[10 * width..20 * width], width)
        );

        let eval = store.eval().unwrap();
        assert_eq!(eval.tokens, packed.eval);
        let tokens = tensor(&packed.eval);
        let state = model.run_to_hook(&tokens, &point).unwrap();
        close(eval.acts, &numbers(&state.acts), "acts");
        assert_eq!(eval.carry.len(), state.carry.len(), "{family}");
        for ((carry_width, found), carry) in eval.carry.iter().zip(&state.carry) {
            assert_eq!(*carry_width, carry.dims3().unwrap().2);
            close(found, &numbers(carry), "carry");
        }
        let clean = model.forward(&tokens).unwrap();
        let zeros = HookState { acts: state.acts.zeros_like().unwrap(), carry: state.carry };
        let ablated = model.run_from_hook(&zeros, &point).unwrap();
        close(eval.loss_clean, &numbers(&per_token_loss(&clean, &tokens).unwrap()), "clean loss");
        close(eval.loss_ablated, &numbers(&per_token_loss(&ablated, &tokens).unwrap()), "ablated loss");
        let kl = numbers(&per_token_kl(&clean, &ablated).unwrap());
        close(eval.kl_ablated, &kl, "divergence");
        assert!(kl.iter().any(|kl| *kl > 1e-3), "{family}");
        let special: Vec<u32> = model.tokenizer().unwrap().special_ids().into_iter().collect();
        assert_eq!(eval.special_ids, special);
    }
}

fn files_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let file =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    fs::read_dir(dir).unwrap().map(|entry| file(entry.unwrap())).collect()
}

#[test]
fn stopped_build_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (files, cfg, model) =
        (stories(folder.path()), hooked_trial("blocks.0.hook_mlp_out", ""), model_folder("gpt_neo"));
    let mut calls = Vec::new();
    let mut count = |progress: HarvestProgress| {
        calls.push(progress);
        ControlFlow::Continue(())
    };
    let (_, dir) = ensure_store(&folder.path().join("whole"), &model, &files, &cfg, &mut count).unwrap();
    let whole = files_of(&dir);
    assert!(whole.len() >= 7, "{:?}", whole.keys());
    let phases: Vec<HarvestPhase> = calls.iter().map(|progress| progress.phase).collect();
    for phase in [
        HarvestPhase::Hashing,
        HarvestPhase::Loading,
        HarvestPhase::Tokenising,
        HarvestPhase::Harvesting,
        HarvestPhase::Evaluating,
    ] {
        assert!(phases.contains(&phase), "{phase:?}");
    }
    assert!(calls.iter().all(|progress| progress.rows_done <= progress.rows_total), "{calls:?}");

    let mut kept_shards = 0;
    for stop_at in 0..calls.len() {
        let stores = folder.path().join(format!("stopped-{stop_at}"));
        let mut left = stop_at;
        let mut stop = |_| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            ControlFlow::Continue(())
        };
        let error = ensure_store(&stores, &model, &files, &cfg, &mut stop).unwrap_err();
        assert!(matches!(error, HarvestError::Interrupted), "{stop_at}: {error}");
        let mut first = None;
        let mut note = |progress: HarvestProgress| {
            if progress.phase == HarvestPhase::Harvesting && first.is_none() {
                first = Some(progress.rows_done);
            }
            ControlFlow::Continue(())
        };
        let (_, dir) = ensure_store(&stores, &model, &files, &cfg, &mut note).unwrap();
        assert_eq!(files_of(&dir), whole, "{stop_at}");
        // After a stop in the evaluation nothing is harvested again.
        kept_shards += usize::from(first.is_none_or(|rows| rows > 0));
    }
    assert!(kept_shards >= 3, "{kept_shards}");
}

#[test]
fn store_that_is_there_is_not_built_again() {
    let folder = tempfile::tempdir().unwrap();
    let (files, mut cfg, model) =
        (stories(folder.path()), hooked_trial("hook_embed", ""), model_folder("llama"));
    let stores = folder.path().join("stores");
    let first = ensure_store(&stores, &model, &files, &cfg, &mut quietly).unwrap();
    let mut phases = Vec::new();
    let mut note = |progress: HarvestProgress| {
        phases.push(progress.phase);
        ControlFlow::Continue(())
    };
    cfg.train.lr = 1.0;
    cfg.sae.d_sae = 99;
    model_of(&mut cfg).name = "the same model under another name".to_owned();
    assert_eq!(ensure_store(&stores, &model, &files, &cfg, &mut note).unwrap(), first);
    assert_eq!(phases, [HarvestPhase::Hashing]);
    // It may still be too small for what a trial wants.
    cfg.train.batch_size = 211;
    let error = ensure_store(&stores, &model, &files, &cfg, &mut quietly).unwrap_err().to_string();
    assert!(error.contains("210 rows, fewer than train.batch_size = 211"), "{error}");
}

#[test]
fn identity_names_everything_that_makes_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let (files, cfg, model) = (stories(folder.path()), hooked_trial("hook_embed", ""), model_folder("llama"));
    let key =
        |model: &Path, files: &[PathBuf], cfg: &TrialConfig| store_identity(model, files, cfg).unwrap().key();
    let mut keys = vec![key(&model, &files, &cfg), key(&model_folder("qwen2"), &files, &cfg)];
    let changes: [fn(&mut TrialConfig); 13] = [
        |cfg| model_of(cfg).hook = "blocks.0.hook_resid_pre".to_owned(),
        |cfg| data_of(cfg).column = "text".to_owned(),
        |cfg| data_of(cfg).context_size = 11,
        |cfg| data_of(cfg).prepend_bos = false,
        |cfg| data_of(cfg).sequence_separator_token = SequenceSeparator::None,
        |cfg| data_of(cfg).disable_concat_sequences = true,
        |cfg| data_of(cfg).eval_fraction = 0.3,
        |cfg| data_of(cfg).eval_max_tokens = 61,
        |cfg| cfg.store.tokens = 206,
        |cfg| cfg.store.dtype = StoreDtype::Bfloat16,
        |cfg| cfg.store.shuffle_buffer_rows = 65,
        |cfg| cfg.store.shuffle_seed = 4,
        |cfg| cfg.store.tokens = 207,
    ];
    for change in changes {
        let mut changed = cfg.clone();
        change(&mut changed);
        keys.push(key(&model, &files, &changed));
    }
    let text = fs::read_to_string(&files[0]).unwrap();
    fs::write(&files[0], text.replace("cat", "cow")).unwrap();
    keys.push(key(&model, &files, &cfg));
    fs::write(&files[0], text).unwrap();
    let n = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), n);
    let cached = store_identity_cached(&mut ContentHashes::new(), &model, &files, &cfg).unwrap().key();
    assert_eq!(cached, key(&model, &files, &cfg));
}

#[test]
fn what_cannot_be_harvested_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (files, cfg, model) =
        (stories(folder.path()), hooked_trial("hook_embed", ""), model_folder("gpt_neo"));
    let stores = folder.path().join("stores");
    let check = |model: &Path, files: &[PathBuf], cfg: &TrialConfig, expected: &[&str]| {
        let error = ensure_store(&stores, model, files, cfg, &mut quietly).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{error}");
        }
        let left: Vec<_> =
            fs::read_dir(&stores).into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "content-hashes.json"), "{left:?}");
    };
    check(
        &model,
        &files,
        &hooked_trial("blocks.0.hook_mlp_oot", ""),
        &["no hook `blocks.0.hook_mlp_oot`", "blocks.0.hook_mlp_out"],
    );
    let mut long = cfg.clone();
    data_of(&mut long).context_size = 100_000;
    check(&model, &files, &long, &["data.context_size is 100000, and model `org/model` takes at most"]);
    let mut large = cfg.clone();
    large.train.batch_size = 4096;
    check(&model, &files, &large, &["210 rows, fewer than train.batch_size = 4096"]);
    let tokens = folder.path().join("tokens.jsonl");
    let row: Vec<u32> = (0..10).map(|i| 100_000 + i).collect();
    let line = serde_json::json!({"tokens": row}).to_string() + "\n";
    fs::write(&tokens, line.repeat(3)).unwrap();
    check(&model, &[tokens], &cfg, &["token 100000 at position 0 is outside the model's vocabulary"]);
    let bare = folder.path().join("bare");
    fs::create_dir(&bare).unwrap();
    for name in ["config.json", "pytorch_model.bin"] {
        fs::copy(model.join(name), bare.join(name)).unwrap();
    }
    check(&bare, &files, &cfg, &["stories.jsonl holds text, and the model has no tokenizer"]);
    check(&folder.path().join("none"), &files, &cfg, &["none"]);
    check(&model, &[folder.path().join("none.txt")], &cfg, &["none.txt"]);
}

#[test]
fn tokenised_data_needs_no_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let bare = folder.path().join("bare");
    fs::create_dir(&bare).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(model_folder("qwen2").join(name), bare.join(name)).unwrap();
    }
    let lines: String = (0..30_u32)
        .map(|i| {
            serde_json::json!({"input_ids": (0..12).map(|j| (i * 5 + j * 3) % 60).collect::<Vec<_>>()})
                .to_string()
                + "\n"
        })
        .collect();
    let file = folder.path().join("tokens.jsonl");
    fs::write(&file, lines).unwrap();
    let cfg = hooked_trial("blocks.0.hook_resid_mid", "");
    let stores = folder.path().join("stores");
    let (key, _) = ensure_store(&stores, &bare, &[file], &cfg, &mut quietly).unwrap();
    let store = Store::open(&stores, &key).unwrap();
    assert_eq!(store.rows(), 210);
    let eval = store.eval().unwrap();
    assert_eq!(eval.tokens.len(), 60);
    assert!(eval.special_ids.is_empty());
}
