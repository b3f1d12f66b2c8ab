//! The store from outside: what is written comes back, in its order, and stays readable.

mod builds;
mod damage;
mod manage;

use half::{bf16, f16};
use proptest::prelude::*;
use saesweep::{
    store::{
        BatchOrder, EvalPart, FORMAT_VERSION, ModelIdentity, SourceIdentity, Store, StoreError,
        StoreIdentity, StoreLabel, StoreWriter, WriterStart, list, verify,
    },
    trial::{SequenceSeparator, StoreDtype},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A small data set: its values are functions of where they stand, so every test knows them.
#[derive(Debug, Clone)]
struct Sample {
    sequences: usize,
    context: usize,
    width: usize,
    buffer_rows: usize,
    dtype: StoreDtype,
    seed: u64,
}

const SAMPLE: Sample =
    Sample { sequences: 5, context: 4, width: 3, buffer_rows: 9, dtype: StoreDtype::Float16, seed: 7 };

impl Sample {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity {
            format_version: FORMAT_VERSION,
            source: SourceIdentity::Model(ModelIdentity {
                model_hash: "11".repeat(32),
                hook: "blocks.0.hook_mlp_out".to_owned(),
                data_hash: "22".repeat(32),
                column: "text".to_owned(),
                context_size: self.context,
                prepend_bos: true,
                separator: SequenceSeparator::Bos,
                disable_concat: false,
                eval_fraction: 0.02,
                eval_max_tokens: 100,
            }),
            tokens: 1000,
            dtype: self.dtype,
            shuffle_buffer_rows: self.buffer_rows,
            shuffle_seed: self.seed,
        }
    }

    fn label(&self) -> StoreLabel {
        StoreLabel {
            model: "org/model".to_owned(),
            hook: "blocks.0.hook_mlp_out".to_owned(),
            dataset: "org/stories".to_owned(),
        }
    }

    fn rows(&self) -> usize {
        self.sequences * self.context
    }

    /// Row of this origin: its first value is the origin, small enough here to be exact in any format.
    fn row(&self, origin: usize) -> Vec<f32> {
        (0..self.width)
            .map(|j| if j == 0 { origin as f32 } else { (origin * 31 + j * 7) as f32 * 0.37 - 5.0 })
            .collect()
    }

    fn eval(&self) -> EvalPart {
        let (s, p, d) = (2, self.context, self.width);
        let floats = |n: usize, scale: f32| (0..n).map(|i| i as f32 * scale).collect::<Vec<f32>>();
        EvalPart {
            context_size: p,
            tokens: (0..(s * p) as u32).collect(),
            acts: floats(s * p * d, 0.1),
            carry: vec![(d + 1, floats(s * p * (d + 1), 0.2)), (1, floats(s * p, 0.3))],
            loss_clean: floats(s * (p - 1), 0.4),
            loss_ablated: floats(s * (p - 1), 0.5),
            kl_ablated: floats(s * p, 0.6),
            special_ids: vec![0, 2],
        }
    }

    fn start(&self, stores: &Path) -> Result<WriterStart, StoreError> {
        StoreWriter::create(stores, &self.identity(), &self.label(), self.width, self.sequences)
    }

    fn writer(&self, stores: &Path) -> Box<StoreWriter> {
        match self.start(stores).unwrap() {
            WriterStart::Build(writer) => writer,
            WriterStart::AlreadyWhole(dir) => panic!("whole already: {}", dir.display()),
        }
    }

    /// Writes the next shard; false when there is none.
    fn step(&self, writer: &mut StoreWriter) -> bool {
        let Some(plan) = writer.next_shard() else { return false };
        let origins = plan.sequences.iter().flat_map(|s| s * self.context..(s + 1) * self.context);
        let rows: Vec<f32> = origins.flat_map(|origin| self.row(origin)).collect();
        writer.write_shard(&plan, &rows).unwrap();
        true
    }

    fn build(&self, stores: &Path) -> PathBuf {
        let mut writer = self.writer(stores);
        while self.step(&mut writer) {}
        writer.finish(self.eval()).unwrap()
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect()
}

fn all_rows(store: &Store) -> Vec<f32> {
    let mut rows = vec![0.0; store.rows() as usize * store.width()];
    store.read_rows(0, &mut rows);
    rows
}

/// Stored row number -> origin.
fn origins(store: &Store) -> Vec<usize> {
    all_rows(store).chunks(store.width()).map(|row| row[0] as usize).collect()
}

/// A folder for stores: in memory where that is possible, because every file is synced.
fn temp() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_no_such_folder| tempfile::tempdir()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_comes_back(
        sequences in 1_usize..12, context in 1_usize..7, width in 1_usize..20, buffer_rows in 0_usize..40,
        seed: u64, dtype in 0_usize..3, start in 0_u64..100, read in 0_usize..100,
    ) {
        let dtype = [StoreDtype::Float32, StoreDtype::Float16, StoreDtype::Bfloat16][dtype];
        let sample = Sample { sequences, context, width, buffer_rows, dtype, seed };
        let stores = temp();
        let dir = sample.build(stores.path());
        let store = Store::open(stores.path(), &sample.identity().key()).unwrap();
        prop_assert_eq!(store.dir(), dir.as_path());
        prop_assert_eq!((store.rows(), store.width()), (sample.rows() as u64, width));

        let rows = all_rows(&store);
        let mut seen: Vec<usize> = rows.chunks(width).map(|row| row[0] as usize).collect();
        let mut norms = 0.0;
        for (row, &origin) in rows.chunks(width).zip(&seen) {
            for (&found, given) in row.iter().zip(sample.row(origin)) {
                let expected = match dtype {
                    StoreDtype::Float32 => given,
                    StoreDtype::Float16 => f16::from_f32(given).to_f32(),
                    StoreDtype::Bfloat16 => bf16::from_f32(given).to_f32(),
                };
                prop_assert_eq!(found, expected);
            }
            norms += row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        }
        seen.sort_unstable();
        prop_assert!(seen.into_iter().eq(0..sample.rows()), "every row once");

        let stats = store.stats().unwrap();
        prop_assert!((stats.mean_norm - norms / sample.rows() as f64).abs() <= 1e-12 * norms);
        prop_assert_eq!(stats.mean_norm, store.header().mean_norm);
        prop_assert_eq!((stats.mean.len(), stats.covariance.len()), (width, width * width));
        prop_assert_eq!(stats.rows_seen, store.rows());

        let mut part = vec![0.0; read * width];
        store.read_rows(start, &mut part);
        for (i, row) in part.chunks(width).enumerate() {
            let at = (start as usize + i) % sample.rows() * width;
            prop_assert_eq!(row, &rows[at..at + width]);
        }
        prop_assert!(verify(&dir).unwrap().is_intact());
    }
}

#[test]
fn the_held_out_part_comes_back() {
    let stores = temp();
    let store = Store::open_dir(&SAMPLE.build(stores.path())).unwrap();
    let (given, found) = (SAMPLE.eval(), store.eval().unwrap());
    assert_eq!((found.sequences, found.context_size, found.width), (2, 4, 3));
    assert_eq!(found.tokens, given.tokens);
    assert_eq!(found.acts, given.acts);
    assert_eq!(found.carry.len(), 2);
    for ((found_width, found), (width, given)) in found.carry.iter().zip(&given.carry) {
        assert_eq!((found_width, *found), (width, given.as_slice()));
    }
    assert_eq!(found.loss_clean, given.loss_clean);
    assert_eq!(found.loss_ablated, given.loss_ablated);
    assert_eq!(found.kl_ablated, given.kl_ablated);
    assert_eq!(found.special_ids, given.special_ids);
}

#[test]
fn a_held_out_part_may_carry_nothing() {
    let sample = Sample { context: 1, ..SAMPLE };
    let stores = temp();
    let mut writer = sample.writer(stores.path());
    while sample.step(&mut writer) {}
    let eval = EvalPart { carry: Vec::new(), special_ids: Vec::new(), ..sample.eval() };
    let store = Store::open_dir(&writer.finish(eval).unwrap()).unwrap();
    let found = store.eval().unwrap();
    assert!(found.carry.is_empty() && found.special_ids.is_empty() && found.loss_clean.is_empty());
}

#[test]
fn a_build_refuses_what_it_cannot_store() {
    let stores = temp();
    let check = |error: StoreError, expected: &str| {
        let message = error.to_string();
        assert!(message.contains(expected), "{message}");
    };
    let create = |identity: &StoreIdentity, width, sequences| {
        StoreWriter::create(stores.path(), identity, &SAMPLE.label(), width, sequences)
            .map(|_| ())
            .unwrap_err()
    };
    let identity = SAMPLE.identity();
    check(create(&identity, 0, 5), "without activation width");
    check(create(&identity, 3, 0), "without training sequences");
    check(
        create(&identity, 3, 100_000),
        "into 50000 shards, at most 10000 are allowed; raise `store.shuffle_buffer_rows`",
    );
    check(
        create(&StoreIdentity { format_version: 9, ..identity }, 3, 5),
        "cannot write store format version 9, this program writes version 1",
    );

    let mut writer = SAMPLE.writer(stores.path());
    let plan = writer.next_shard().unwrap();
    let mut rows = vec![1.0; plan.sequences.len() * 4 * 3];
    check(writer.write_shard(&plan, &rows[1..]).unwrap_err(), "shard 0 has 23 values, expected 24");
    let place = format!("in sequence {} at position 2, dimension 1", plan.sequences[1]);
    rows[(4 + 2) * 3 + 1] = 70000.0;
    check(
        writer.write_shard(&plan, &rows).unwrap_err(),
        &format!("the activation 70000 {place} does not fit into float16"),
    );
    rows[(4 + 2) * 3 + 1] = f32::NAN;
    check(writer.write_shard(&plan, &rows).unwrap_err(), &format!("the model's activation is NaN {place}"));
    assert!(SAMPLE.step(&mut writer), "a refused shard can be written again");
    let expected = "shard 0 was written out of turn, expected 1";
    check(writer.write_shard(&plan, &[1.0; 24]).unwrap_err(), expected);
    check(writer.finish(SAMPLE.eval()).unwrap_err(), "the store lacks 2 of its 3 shards");

    for (eval, expected) in [
        (EvalPart { context_size: 5, ..SAMPLE.eval() }, "`context_size` has 5 values, expected 4"),
        (EvalPart { tokens: vec![1], ..SAMPLE.eval() }, "without held-out sequences"),
        (EvalPart { tokens: vec![1; 9], ..SAMPLE.eval() }, "`tokens` has 9 values, expected 8"),
        (EvalPart { acts: Vec::new(), ..SAMPLE.eval() }, "`acts` has 0 values, expected 24"),
        (
            EvalPart { carry: vec![(2, vec![0.0; 15])], ..SAMPLE.eval() },
            "`carry_0` has 15 values, expected 16",
        ),
        (EvalPart { loss_clean: vec![0.0; 8], ..SAMPLE.eval() }, "`loss_clean` has 8 values, expected 6"),
        (EvalPart { kl_ablated: vec![0.0; 6], ..SAMPLE.eval() }, "`kl_ablated` has 6 values, expected 8"),
    ] {
        let mut writer = SAMPLE.writer(stores.path());
        while SAMPLE.step(&mut writer) {}
        check(writer.finish(eval).unwrap_err(), expected);
    }
}

#[test]
fn batches_are_read_in_their_order() {
    let stores = temp();
    let store = Store::open_dir(&SAMPLE.build(stores.path())).unwrap();
    let rows = all_rows(&store);
    let order = BatchOrder::new(store.rows(), 6, 3).unwrap();
    let mut batch = vec![0.0; 6 * 3];
    for step in 0..20 {
        store.read_batch(&order, step, &mut batch);
        for (i, row) in batch.chunks(3).enumerate() {
            let at = (order.start(step) as usize + i) % 20 * 3;
            assert_eq!(row, &rows[at..at + 3]);
        }
    }
}

#[test]
fn many_readers_see_the_same_rows() {
    let stores = temp();
    let dir = SAMPLE.build(stores.path());
    let expected = all_rows(&Store::open_dir(&dir).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = Store::open_dir(&dir).unwrap();
                let _guard = store.mark_used().unwrap();
                assert_eq!(all_rows(&store), expected);
            });
        }
    });
}

/// Correlation of the numbers with the numbers `lag` places on.
fn autocorrelation(values: &[f64], lag: usize) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    values.iter().zip(&values[lag..]).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>() / variance
}

#[test]
fn the_shuffle_leaves_no_trace_of_the_order() {
    // 512 sequences of 32 tokens through a buffer of 1/8 of the rows. Were the order random, an
    // autocorrelation would be about 1 / sqrt(16384) = 0.008 and neighbours one third of the rows apart.
    // Unshuffled, they are 1 and 0; shuffled within shards of consecutive sequences, 0.98 and 1/24.
    let sample = Sample {
        sequences: 512,
        context: 32,
        width: 1,
        buffer_rows: 2048,
        dtype: StoreDtype::Float32,
        seed: 1,
    };
    let stores = temp();
    let store = Store::open_dir(&sample.build(stores.path())).unwrap();
    assert_eq!(store.header().shards.len(), 8);
    let origins: Vec<f64> = origins(&store).into_iter().map(|origin| origin as f64).collect();
    for lag in [1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 32, 33, 64, 1024] {
        let correlation = autocorrelation(&origins, lag);
        println!("lag {lag}: {correlation:.4}");
        assert!(correlation.abs() < 0.04, "lag {lag}: {correlation}");
    }
    let n = origins.len() as f64;
    let distance = origins.windows(2).map(|pair| (pair[0] - pair[1]).abs()).sum::<f64>() / (n - 1.0) / n;
    println!("mean distance of neighbours: {distance:.4} of the rows");
    assert!((distance - 1.0 / 3.0).abs() < 0.01, "{distance}");
    // Neighbours of one sequence: 31 of 2047 others in the shard, so 1.5 %.
    let same = origins.windows(2).filter(|pair| (pair[0] as u32) / 32 == (pair[1] as u32) / 32).count();
    println!("neighbours of one sequence: {:.4}", same as f64 / n);
    assert!((same as f64 / n) < 0.02, "{same}");
}

/// A store of format version 1 as this program first wrote it. Whatever the format becomes, it stays readable.
const OLD_STORE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store/version-1");

#[test]
fn a_store_of_version_1_is_readable() {
    let stores = Path::new(OLD_STORE);
    let infos = list(stores).unwrap();
    assert_eq!(infos.len(), 1);
    assert_eq!(infos[0].key, "63d16af17ba9ef8b");
    let dir = &infos[0].dir;
    let report = verify(dir).unwrap();
    assert!(report.is_intact(), "{:?}", report.problems);
    assert_eq!(report.files, 6);
    let store = Store::open(stores, &infos[0].key).unwrap();
    assert_eq!(store.header().version, 1);
    assert_eq!(origins(&store), [14, 6, 7, 13, 4, 15, 5, 12, 3, 2, 19, 1, 0, 18, 16, 17, 10, 11, 8, 9]);
    for row in all_rows(&store).chunks(3) {
        let expected: Vec<f32> =
            SAMPLE.row(row[0] as usize).iter().map(|&v| f16::from_f32(v).to_f32()).collect();
        assert_eq!(row, expected);
    }
    assert_eq!(store.eval().unwrap().carry.len(), 2);
    assert_eq!(store.stats().unwrap().rows_seen, 20);
}

#[test]
fn rows_are_written_as_they_were_in_version_1() {
    let stores = temp();
    let ours = files(&SAMPLE.build(stores.path()));
    let old = files(&list(Path::new(OLD_STORE)).unwrap()[0].dir);
    for (name, bytes) in old {
        // The header names the program's version, the statistics depend on the machine in their last bits.
        if !matches!(name.as_str(), "header.json" | "stats.safetensors") {
            assert_eq!(ours[&name], bytes, "{name}");
        }
    }
}

#[test]
#[ignore = "writes the sample of the current version into tests/fixtures; run it once for each new version"]
fn write_the_sample() {
    let dir = SAMPLE.build(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store/version-1")));
    fs::remove_file(dir.with_extension("lock")).unwrap();
}
