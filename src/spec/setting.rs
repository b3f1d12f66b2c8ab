//! One typed value of a setting, and how written values become one.
//!
//! This is the edge where untyped TOML ends: after [`coerce`], a number is known to be whole or not and in
//! range, and a word to exist. 3e6, 3000000.0 and 3_000_000 become the same value here.

use super::{
    error::Fault,
    keys::{Key, Kind, Presence},
    suggest,
};
use figment::value::{Num, Value};

/// A checked value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Setting {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Words(Vec<String>),
    Sizes(Vec<i64>),
    /// The word `auto`: worked out from other settings of the trial.
    Auto,
}

impl Setting {
    /// As TOML.
    pub(crate) fn to_toml(&self) -> String {
        match self {
            Self::Bool(x) => x.to_string(),
            Self::Int(x) => x.to_string(),
            Self::Float(x) => float_text(*x),
            Self::Text(x) => quoted(x),
            Self::Sizes(sizes) => {
                format!("[{}]", sizes.iter().map(i64::to_string).collect::<Vec<_>>().join(", "))
            }
            Self::Words(words) => {
                format!("[{}]", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "))
            }
            Self::Auto => "\"auto\"".to_owned(),
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Bool(x) => (*x).into(),
            Self::Int(x) => (*x).into(),
            Self::Float(x) => (*x).into(),
            Self::Text(x) => x.as_str().into(),
            Self::Words(words) => words.clone().into(),
            Self::Sizes(sizes) => sizes.clone().into(),
            Self::Auto => "auto".into(),
        }
    }

    pub(crate) fn as_int(&self) -> Option<i64> {
        if let Self::Int(x) = self { Some(*x) } else { None }
    }

    pub(crate) fn as_float(&self) -> Option<f64> {
        if let Self::Float(x) = self { Some(*x) } else { None }
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        if let Self::Text(x) = self { Some(x) } else { None }
    }
}

/// A float that reads as one, with the fewest digits that give the same number back.
pub(crate) fn float_text(x: f64) -> String {
    format!("{x:?}")
}

/// A TOML basic string.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Why a written value is not one of a setting's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mismatch {
    pub(crate) fault: Fault,
    pub(crate) found: String,
    pub(crate) expected: String,
    pub(crate) hint: Option<String>,
}

/// Checks a written value against its setting's kind.
pub(crate) fn coerce(key: &Key, value: &Value) -> Result<Setting, Mismatch> {
    let mismatch = |fault, hint| Mismatch { fault, found: show(value), expected: key.describe(), hint };
    if matches!(key.presence, Presence::Auto(_)) && value.as_str() == Some("auto") {
        return Ok(Setting::Auto);
    }
    let wrong_type = || mismatch(Fault::WrongType, type_hint(key, value));
    match key.kind {
        Kind::Bool => value.to_bool().map(Setting::Bool).ok_or_else(wrong_type),
        Kind::Int { min, max } => match number(value) {
            Some(Number::Whole(x)) if (i128::from(min)..=i128::from(max)).contains(&x) => {
                let x = i64::try_from(x).expect("invariant: the range lies within i64");
                Ok(Setting::Int(x))
            }
            Some(Number::Whole(_)) => Err(mismatch(Fault::OutOfRange, None)),
            Some(Number::Broken(x)) if x.is_finite() => Err(mismatch(Fault::WrongType, None)),
            Some(Number::Broken(_)) => Err(mismatch(Fault::OutOfRange, None)),
            None => Err(wrong_type()),
        },
        Kind::Count { max } => match number(value) {
            Some(Number::Whole(x)) if (1..=i128::from(max)).contains(&x) => {
                Ok(Setting::Int(i64::try_from(x).expect("invariant: the range lies within i64")))
            }
            Some(Number::Broken(x)) if x > 0.0 && x < max as f64 => Ok(Setting::Float(x)),
            Some(_) => Err(mismatch(Fault::OutOfRange, None)),
            None => Err(wrong_type()),
        },
        Kind::Float(range) => match number(value) {
            Some(x) => {
                // Adding 0 turns -0 into 0, so that there is one zero.
                let x = x.to_f64() + 0.0;
                if range.contains(x) { Ok(Setting::Float(x)) } else { Err(mismatch(Fault::OutOfRange, None)) }
            }
            None => Err(wrong_type()),
        },
        Kind::Text { empty } => match value.as_str() {
            Some("") if !empty => Err(mismatch(Fault::Empty, None)),
            Some(text) => Ok(Setting::Text(text.to_owned())),
            None => Err(wrong_type()),
        },
        Kind::Folder => match value.as_str() {
            Some(text) if is_folder_name(text) => Ok(Setting::Text(text.to_owned())),
            Some(_) => Err(mismatch(Fault::BadName, None)),
            None => Err(wrong_type()),
        },
        Kind::Paths => {
            let text = |value: &Value| match value.as_str() {
                Some("") => Err(mismatch(Fault::Empty, None)),
                Some(text) => Ok(text.to_owned()),
                None => Err(wrong_type()),
            };
            match value {
                Value::Array(_, items) if items.is_empty() => Err(mismatch(Fault::Empty, None)),
                Value::Array(_, items) => {
                    Ok(Setting::Words(items.iter().map(text).collect::<Result<_, _>>()?))
                }
                one => Ok(Setting::Words(vec![text(one)?])),
            }
        }
        Kind::Word(words) => match value.as_str() {
            Some(text) if words.contains(&text) => Ok(Setting::Text(text.to_owned())),
            Some(text) => Err(mismatch(Fault::UnknownValue, word_hint(key.name, text, words))),
            None => Err(wrong_type()),
        },
        Kind::Sizes { max } => {
            let items = value.as_array().ok_or_else(wrong_type)?;
            let mut sizes = Vec::new();
            for item in items {
                match number(item) {
                    Some(Number::Whole(x)) if (1..=i128::from(max)).contains(&x) => {
                        sizes.push(i64::try_from(x).expect("invariant: the range lies within i64"));
                    }
                    Some(Number::Whole(_)) => return Err(mismatch(Fault::OutOfRange, None)),
                    _ => return Err(wrong_type()),
                }
            }
            Ok(Setting::Sizes(sizes))
        }
        Kind::Words(words) => {
            let items = value.as_array().ok_or_else(wrong_type)?;
            let mut chosen = Vec::new();
            for item in items {
                let text = item.as_str().ok_or_else(wrong_type)?;
                if !words.contains(&text) {
                    return Err(mismatch(Fault::UnknownValue, suggest::word(text, words.iter().copied())));
                }
                chosen.push(text.to_owned());
            }
            Ok(Setting::Words(chosen))
        }
    }
}

/// A name that is a folder of its own on every system, hidden nowhere and no option of any tool.
fn is_folder_name(text: &str) -> bool {
    text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn word_hint(key: &str, text: &str, words: &[&str]) -> Option<String> {
    if key == "sweep.strategy" {
        match text {
            "sobol" | "tpe" | "gp" => {
                return Some("this strategy does not exist yet; \"random\" needs no grid either".to_owned());
            }
            "bayes" | "bayesian" => return Some("there is no model-based search; try \"random\"".to_owned()),
            _ => {}
        }
    }
    suggest::word(text, words.iter().copied())
}

/// Explains the usual reasons for a value of another type.
fn type_hint(key: &Key, value: &Value) -> Option<String> {
    let section = key.section();
    match value {
        Value::Array(..) | Value::Dict(..) if key.scope == super::keys::Scope::Trial => Some(format!(
            "[{section}] holds one value for all trials; to vary it, write `{}` under [axes]",
            key.name
        )),
        Value::String(_, text)
            if matches!(key.kind, Kind::Int { .. } | Kind::Count { .. } | Kind::Float(_)) =>
        {
            text.trim()
                .replace('_', "")
                .parse::<f64>()
                .is_ok()
                .then(|| "write the number without quotes".to_owned())
        }
        Value::String(_, text) if key.kind == Kind::Bool => {
            matches!(text.as_str(), "true" | "false").then(|| "write it without quotes".to_owned())
        }
        Value::Num(..) | Value::Bool(..) if matches!(key.kind, Kind::Text { .. } | Kind::Folder) => {
            Some("write it in quotes".to_owned())
        }
        _ => None,
    }
}

/// A written number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    /// Whole, however it was written.
    Whole(i128),
    /// Not whole, or not finite.
    Broken(f64),
}

impl Number {
    pub(crate) fn to_f64(self) -> f64 {
        match self {
            Self::Whole(x) => x as f64,
            Self::Broken(x) => x,
        }
    }
}

/// The number that a value is, if it is one.
pub(crate) fn number(value: &Value) -> Option<Number> {
    /// Up to here every whole number has a float of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let num = value.to_num()?;
    if let Some(x) = num.to_i128() {
        return Some(Number::Whole(x));
    }
    if let Some(x) = num.to_u128() {
        return i128::try_from(x).ok().map(Number::Whole);
    }
    let x = num.to_f64()?;
    Some(if x.fract() == 0.0 && x.abs() <= EXACT { Number::Whole(x as i128) } else { Number::Broken(x) })
}

/// A written value as a user would write it, short enough for a message.
pub(crate) fn show(value: &Value) -> String {
    let text = write_toml(value);
    const MAX_CHARS: usize = 80;
    if text.chars().count() <= MAX_CHARS {
        text
    } else {
        let head: String = text.chars().take(MAX_CHARS).collect();
        format!("{head}…")
    }
}

/// A written value as TOML on one line.
pub(crate) fn write_toml(value: &Value) -> String {
    match value {
        Value::String(_, text) => quoted(text),
        Value::Char(_, c) => quoted(&c.to_string()),
        Value::Bool(_, x) => x.to_string(),
        Value::Num(_, num) => write_number(*num),
        Value::Empty(..) => "nothing".to_owned(),
        Value::Array(_, items) => {
            format!("[{}]", items.iter().map(write_toml).collect::<Vec<_>>().join(", "))
        }
        Value::Dict(_, dict) if dict.is_empty() => "{}".to_owned(),
        Value::Dict(_, dict) => {
            let pairs: Vec<String> = dict
                .iter()
                .map(|(key, value)| format!("{} = {}", write_key(key), write_toml(value)))
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}

fn write_number(num: Num) -> String {
    match (num.to_i128(), num.to_u128(), num.to_f64()) {
        (Some(x), _, _) => x.to_string(),
        (_, Some(x), _) => x.to_string(),
        (_, _, Some(x)) if x.is_nan() => "nan".to_owned(),
        (_, _, Some(x)) => float_text(x),
        _ => "a number".to_owned(),
    }
}

/// A TOML key, quoted where it has to be.
pub(crate) fn write_key(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if bare { key.to_owned() } else { quoted(key) }
}

#[cfg(test)]
mod tests {
    use super::super::keys::find;
    use super::*;

    fn check(key: &str, value: impl Into<Value>, expected: Setting) {
        assert_eq!(coerce(find(key).unwrap(), &value.into()), Ok(expected), "{key}");
    }

    fn fault(key: &str, value: impl Into<Value>) -> Fault {
        coerce(find(key).unwrap(), &value.into()).unwrap_err().fault
    }

    #[test]
    fn whole_numbers_may_be_written_as_floats() {
        check("train.tokens", 3e6, Setting::Int(3_000_000));
        check("train.tokens", 3_000_000_i128, Setting::Int(3_000_000));
        check("train.lr", 1_i128, Setting::Float(1.0));
        assert_eq!(fault("train.tokens", 2.5), Fault::WrongType);
        assert_eq!(fault("train.tokens", 1e300), Fault::WrongType);
    }

    #[test]
    fn ranges_are_held_at_both_ends() {
        assert_eq!(fault("train.lr", 0.0), Fault::OutOfRange);
        assert_eq!(fault("train.lr", f64::NAN), Fault::OutOfRange);
        assert_eq!(fault("train.lr", f64::INFINITY), Fault::OutOfRange);
        assert_eq!(fault("train.adam_beta1", 1.0), Fault::OutOfRange);
        assert_eq!(fault("train.adam_beta1", -0.1), Fault::OutOfRange);
        check("train.adam_beta1", 0.0, Setting::Float(0.0));
        assert_eq!(fault("data.context_size", 1_i128), Fault::OutOfRange);
        assert_eq!(fault("train.seed", i128::from(u64::MAX)), Fault::OutOfRange);
    }

    #[test]
    fn there_is_one_zero() {
        let Ok(Setting::Float(zero)) = coerce(find("sae.decoder_init_norm").unwrap(), &Value::from(-0.0))
        else {
            panic!("a number");
        };
        assert!(zero.is_sign_positive());
    }

    #[test]
    fn folder_names_are_safe() {
        for good in ["a", "tinystories-mlp_out.v2", "0"] {
            assert!(is_folder_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "-x", ".hidden", "é", "a\\b", "a:b"] {
            assert!(!is_folder_name(bad), "{bad}");
        }
    }
}
