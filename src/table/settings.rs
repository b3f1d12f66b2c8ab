//! Settings as values: their order, and which keys play a special part in a sweep.

use serde_json::Value;
use std::cmp::Ordering;

/// Keys that make the same choice again with other random numbers.
const REPEAT_KEYS: &[&str] = &["train.seed", "train.data_seed", "store.shuffle_seed", "activations.seed"];

/// Keys that choose how sparse the latents are. Such an axis moves along the frontier of sparsity and
/// fidelity; its best value by a fidelity metric alone says little.
const SPARSITY_KEYS: &[&str] = &["sae.l1_coefficient", "sae.k", "sae.l0_coefficient", "sae.target_l0"];

/// Sections in the order of a sweep file.
const SECTIONS: &[&str] = &["activations", "model", "data", "store", "sae", "train", "eval"];

/// Whether the key is a seed: trials that differ in nothing else are repeats.
pub fn is_repeat_key(key: &str) -> bool {
    REPEAT_KEYS.contains(&key)
}

/// Whether the key sets the sparsity.
pub fn is_sparsity_key(key: &str) -> bool {
    SPARSITY_KEYS.contains(&key)
}

/// Sort key that puts settings in the order of a sweep file: section first, then name.
pub fn section_rank(key: &str) -> (usize, &str) {
    let section = key.split('.').next().unwrap_or(key);
    (SECTIONS.iter().position(|known| *known == section).unwrap_or(SECTIONS.len()), key)
}

/// Order of two values of one setting: absent, booleans, numbers by size, then text and the rest as written.
pub fn compare_settings(a: &Value, b: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) | Value::Object(_) => 4,
    };
    rank(a).cmp(&rank(b)).then_with(|| match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => {
            let wide = |number: &serde_json::Number| number.as_f64().unwrap_or(f64::NAN);
            wide(a).total_cmp(&wide(b))
        }
        (Value::String(a), Value::String(b)) => a.cmp(b),
        _ => a.to_string().cmp(&b.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_ordered_by_size_whatever_their_type() {
        let mut values =
            [json!("b"), json!(10), json!(2.5), json!(null), json!("a"), json!(true), json!(1e-3)];
        values.sort_by(compare_settings);
        assert_eq!(
            values,
            [json!(null), json!(true), json!(1e-3), json!(2.5), json!(10), json!("a"), json!("b")]
        );
    }

    #[test]
    fn sections_come_in_the_order_of_a_sweep_file() {
        let mut keys = ["train.lr", "zeta", "sae.k", "model.hook", "sae.d_sae"];
        keys.sort_by_key(|key| section_rank(key));
        assert_eq!(keys, ["model.hook", "sae.d_sae", "sae.k", "train.lr", "zeta"]);
    }
}
