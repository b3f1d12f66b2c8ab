//! Training a transcoder follows SAELens' own trainer, whose targets were made the output
//! (`tests/fixtures/train/make_transcoder_golden.py`).

use super::padded;
use candle_core::Device;
use saesweep::{
    kernels::{Params, Pool},
    sae::Normalizer,
    train::{Output, Trainer},
    trial::{Architecture, SaeConfig, TrainConfig},
};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const JSON: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/train/transcoder.json"));
const TENSORS: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/train/transcoder.safetensors"));

/// Allowed relative deviation of a loss at any step, and of a gradient from the largest of its array.
const TOLERANCE: f64 = 1e-5;
/// Allowed absolute deviation of an exported weight.
const WEIGHT_TOLERANCE: f64 = 2e-5;

fn settings<T: serde::de::DeserializeOwned>(of: &Value, more: &[(&str, Value)]) -> T {
    let mut map = of.as_object().unwrap().clone();
    more.iter().for_each(|(key, value)| drop(map.insert((*key).to_owned(), value.clone())));
    serde_json::from_value(Value::Object(map)).unwrap()
}

/// Weights of the fixture in memory's form: the encoder turned, rows filled up.
fn params(tensors: &SafeTensors<'_>, prefix: &str, output: &Output) -> Params {
    let get = |name: &str| -> Vec<f32> {
        let tensor = tensors.tensor(&format!("{prefix}.{name}"));
        tensor.map_or_else(|_| Vec::new(), |tensor| bytemuck::pod_collect_to_vec(tensor.data()))
    };
    let (d_in, d_out, width) = (output.d_in, output.d_out, output.width());
    let w_enc = get("W_enc");
    let d_sae = w_enc.len() / d_in;
    let turned: Vec<f32> = (0..w_enc.len()).map(|i| w_enc[i % d_in * d_sae + i / d_in]).collect();
    Params {
        w_enc: padded(&turned, d_in, width),
        w_dec: padded(&get("W_dec"), d_out, width),
        b_enc: get("b_enc"),
        b_dec: padded(&get("b_dec"), d_out, width),
        threshold: get("threshold"),
        ..Params::default()
    }
}

/// The weights as `finish` leaves them: factors of input and output folded, too.
fn folded(mut params: Params, output: &Output, sae: &SaeConfig) -> Params {
    let scale = |values: &mut [f32], factor: f64| {
        values.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32)
    };
    let (s_in, s_out) = (output.scale_in, output.scale_out);
    scale(&mut params.b_dec, 1.0 / s_out);
    if matches!(sae.architecture, Architecture::TopK { rescale_acts_by_decoder_norm: true, .. }) {
        // Decoder rows have norm 1 either way: the factor has gone into the encoder with their norms.
        scale(&mut params.w_enc, s_in / s_out);
        scale(&mut params.b_enc, 1.0 / s_out);
    } else {
        scale(&mut params.w_enc, s_in);
        scale(&mut params.w_dec, 1.0 / s_out);
    }
    params
}

fn largest_deviation(got: &Params, want: &Params, relative: bool) -> f64 {
    let mut worst = 0.0_f64;
    for (got, want) in got.arrays().into_iter().zip(want.arrays()) {
        assert_eq!(got.len(), want.len());
        let largest = want.iter().fold(1e-12_f32, |largest, g| largest.max(g.abs()));
        for (got, want) in got.iter().zip(want) {
            let off = f64::from((got - want).abs()) / if relative { f64::from(largest) } else { 1.0 };
            assert!(!off.is_nan());
            worst = worst.max(off);
        }
    }
    worst
}

#[test]
fn transcoders_follow_the_real_trainer() {
    let golden: Value = serde_json::from_str(JSON).unwrap();
    let tensors = SafeTensors::deserialize(TENSORS).unwrap();
    let cases = golden["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 8);
    for (name, case) in cases {
        let number = |key: &str| case[key].as_f64().unwrap();
        let output = Output {
            d_in: number("d_in") as usize,
            d_out: number("d_out") as usize,
            scale_in: number("scale_in"),
            scale_out: number("scale_out"),
        };
        let sae: SaeConfig =
            settings(&case["sae"], &[("d_sae", golden["d_sae"].clone()), ("decoder_init_norm", json!(0.1))]);
        let train: TrainConfig = settings(
            &case["train"],
            &[("batch_size", golden["batch_size"].clone()), ("seed", json!(0)), ("data_seed", json!(0))],
        );
        let batches: Vec<f32> =
            bytemuck::pod_collect_to_vec(tensors.tensor(&format!("{name}.batches")).unwrap().data());
        for (threads, device) in [(1, None), (3, None), (1, Some(Device::Cpu))] {
            let pool = Pool::new(threads);
            let start = params(&tensors, &format!("{name}.init"), &output);
            let mut trainer = Trainer::new(&sae, &train, output.width(), start, Normalizer::Identity, &pool)
                .with_output(output);
            if let Some(device) = &device {
                trainer.move_to(device).unwrap();
            }
            let (mut worst, mut steps) = (0.0_f64, 0);
            for (step, batch) in batches.chunks_exact(train.batch_size * output.row_width()).enumerate() {
                assert!(trainer.step(&pool, batch).unwrap().is_finite(), "{name}, step {step}");
                let values: BTreeMap<_, _> = trainer.log_line(batch).unwrap().values().into_iter().collect();
                for (key, theirs) in case["lines"].as_object().unwrap() {
                    let want = theirs[step].as_f64().unwrap();
                    let got = *values.get(key.as_str()).unwrap_or_else(|| panic!("{name}: no {key}"));
                    let off = if want == 0.0 { got.abs() } else { (got - want).abs() / want.abs() };
                    if key.starts_with("losses/") {
                        worst = worst.max(off);
                    }
                    // An explained variance may come near 0.
                    let off = if key.starts_with("metrics/explained") { (got - want).abs() } else { off };
                    assert!(off < TOLERANCE, "{name}, step {step}, {key}: {got}, SAELens has {want}");
                }
                if step == 0 && device.is_none() {
                    let want = params(&tensors, &format!("{name}.grad"), &output);
                    let off = largest_deviation(trainer.last_gradients(), &want, true);
                    assert!(off < TOLERANCE, "{name}: gradients off by {off}");
                }
                steps += 1;
            }
            assert_eq!(steps, 20);
            let trained = trainer.finish(&pool).unwrap();
            let want = folded(params(&tensors, &format!("{name}.final"), &output), &output, &sae);
            let weights = largest_deviation(&trained.sae.params, &want, false);
            println!(
                "{name}, {threads} threads, tensors {}: losses {worst:.1e}, weights {weights:.1e}",
                device.is_some()
            );
            assert!(weights < WEIGHT_TOLERANCE, "{name}: weights off by {weights}");
            assert_eq!((trained.sae.d_in, trained.sae.d_out), (output.d_in, Some(output.d_out)));
            assert_eq!(Some(trained.n_dead), case["num_dead_features"].as_u64(), "{name}");
            assert!((trained.l0 - case["l0"].as_f64().unwrap()).abs() < 1e-4, "{name}");
        }
    }
}
