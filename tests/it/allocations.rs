//! A training step in the steady state allocates nothing, whatever the architecture: counted by an allocator that
//! serves this whole binary, on the threads that ask for it.
//!
//! One thread trains here. With more, who meets which tile is chance, and with it when the last memory is allocated.
//! Whitening is left out: its dense product is another library's, which allocates.

use super::small_trial::small_trial;
use saesweep::{
    kernels::Pool,
    sae::{self, Normalizer},
    train::Trainer,
    trial::{NormalizeActivations, SaeConfig},
};
use serde_json::{Value, json};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Allocations since counting began, on threads where it did.
    static COUNT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Bytes that are allocated since then, and the most that were.
    static BYTES: Cell<Option<(isize, isize)>> = const { Cell::new(None) };
}

fn count() {
    COUNT.set(COUNT.get().map(|count| count + 1));
}

fn grow(by: isize) {
    BYTES.set(BYTES.get().map(|(bytes, most)| (bytes + by, most.max(bytes + by))));
}

// SAFETY: everything is passed on to the system's allocator. Counting touches a thread-local without a destructor
// that is initialised at compile time, so it neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        grow(layout.size() as isize);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        grow(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        grow(new_size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, new_size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        grow(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

fn allocations_of(run: impl FnOnce()) -> usize {
    COUNT.set(Some(0));
    run();
    COUNT.take().unwrap()
}

/// The most bytes that were allocated at a time while `run` ran, beside those from before.
pub(crate) fn most_bytes_of(run: impl FnOnce()) -> usize {
    BYTES.set(Some((0, 0)));
    run();
    BYTES.take().unwrap().1 as usize
}

const D_IN: usize = 64;
const D_SAE: usize = 480;
const BATCH: usize = 192;

/// Allocations of as many steps as warmed up, over the same batches.
fn check(normalize_activations: NormalizeActivations, apply_b_dec_to_input: bool, architecture: &Value) {
    let mut trial = small_trial();
    trial.sae = SaeConfig {
        d_sae: D_SAE,
        apply_b_dec_to_input,
        normalize_activations,
        architecture: serde_json::from_value(architecture.clone()).unwrap(),
        ..trial.sae
    };
    // Latents that are silent for two steps are dead, so that auxiliary losses have something to do. At this rate
    // the weights hardly move, so every round over the batches is as dense as the one before.
    (trial.train.batch_size, trial.train.dead_feature_window, trial.train.lr) = (BATCH, 2, 1e-9);
    let mut params = sae::init(&trial.sae, D_IN, 3);
    // Biases that make the latents differ: some are active on half of the tokens, some never.
    params.b_enc.iter_mut().enumerate().for_each(|(latent, bias)| *bias = -0.003 * latent as f32);
    let mut state = 1_u64;
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let batches: Vec<Vec<f32>> = (0..3).map(|_| (0..BATCH * D_IN).map(|_| number()).collect()).collect();
    let pool = Pool::new(1);
    let normalizer = Normalizer::run_time(normalize_activations);
    let mut trainer = Trainer::new(&trial.sae, &trial.train, D_IN, params, normalizer, &pool);
    // Every batch is met once and the dead are dead; then as often again for lists that grow in leaps.
    let mut steps = |rounds: usize| {
        for x in batches.iter().cycle().take(rounds * batches.len()) {
            assert!(trainer.step(&pool, x).unwrap().is_finite());
        }
    };
    steps(3);
    let allocations = allocations_of(|| steps(3));
    let found = trainer.losses;
    assert!(found.l0 > 0.0, "{architecture}: latents are active");
    assert_eq!(allocations, 0, "{architecture}, {normalize_activations:?}: {found:?}");
}

#[test]
fn allocations_are_counted() {
    let number = allocations_of(|| {
        let mut list = Vec::with_capacity(1);
        list.extend([1, 2, 3]);
        drop(std::hint::black_box(list));
    });
    assert_eq!(number, 2);
    let bytes = most_bytes_of(|| {
        drop(std::hint::black_box(vec![0_u8; 1000]));
        drop(std::hint::black_box([vec![1_u8; 300], vec![1_u8; 400]]));
    });
    assert_eq!(bytes, 1000);
}

#[test]
fn steps_allocate_nothing_once_they_have_memory() {
    let jumprelu = |mode: &str, pre_act_loss_coefficient: f64| {
        json!({
            "architecture": "jumprelu", "jumprelu_init_threshold": 0.01, "jumprelu_bandwidth": 0.05,
            "jumprelu_sparsity_loss_mode": mode, "l0_coefficient": 1.0, "l0_warm_up_steps": 0,
            "pre_act_loss_coefficient": pre_act_loss_coefficient, "jumprelu_tanh_scale": 4.0,
            "jumprelu_ste_to_input": false, "target_l0": if mode == "quadratic" { 20.0 } else { 0.0 },
        })
    };
    let topk = |name: &str| {
        json!({
            "architecture": name, "k": 12, "aux_loss_coefficient": 1.0, "rescale_acts_by_decoder_norm": true,
        })
    };
    let batch_topk = |name: &str| {
        let mut settings = topk(name);
        settings["topk_threshold_lr"] = json!(0.01);
        settings
    };
    let matryoshka = |by_level: bool| {
        let mut settings = batch_topk("matryoshka_batchtopk");
        settings["matryoshka_widths"] = json!([60, 200, 480]);
        settings["use_matryoshka_aux_loss"] = json!(by_level);
        settings
    };
    let standard =
        json!({ "architecture": "standard", "l1_coefficient": 1.0, "lp_norm": 1.0, "l1_warm_up_steps": 0 });
    let architectures = [
        standard.clone(),
        json!({ "architecture": "standard", "l1_coefficient": 1.0, "lp_norm": 1.5, "l1_warm_up_steps": 0 }),
        json!({ "architecture": "gated", "l1_coefficient": 1.0, "l1_warm_up_steps": 0 }),
        topk("topk"),
        topk("abstopk"),
        batch_topk("batchtopk"),
        matryoshka(false),
        matryoshka(true),
        jumprelu("step", 0.0),
        jumprelu("tanh", 0.0),
        jumprelu("quadratic", 0.5),
    ];
    for architecture in &architectures {
        for apply_b_dec_to_input in [false, true] {
            check(NormalizeActivations::None, apply_b_dec_to_input, architecture);
        }
    }
    for mode in [NormalizeActivations::ConstantNormRescale, NormalizeActivations::LayerNorm] {
        check(mode, true, &standard);
        check(mode, true, &topk("topk"));
    }
}
