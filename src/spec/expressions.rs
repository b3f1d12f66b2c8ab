//! `[derive]` and `[[exclude]]`: minijinja expressions over the settings of one trial.
//!
//! An expression sees every setting of the trial under its dotted name, `train.steps` and
//! `train.schedule_steps`, and besides minijinja's own filters the functions `sqrt`, `log2`, `log10`,
//! `floor`, `ceil`, `min` and `max`.

use super::{
    check::View,
    keys::{MODE, find, trial_keys},
    setting::Setting,
    suggest,
};
use minijinja::{Environment, Error, ErrorKind, Expression, UndefinedBehavior, Value, value::Rest};
use std::collections::BTreeMap;

/// Values that expressions can read and nothing can set.
const READ_ONLY: &[&str] = &["train.steps", "train.schedule_steps"];

/// The language of expressions.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_function("sqrt", |x: f64| x.sqrt());
    environment.add_function("log2", |x: f64| x.log2());
    environment.add_function("log10", |x: f64| x.log10());
    environment.add_function("floor", |x: f64| x.floor());
    environment.add_function("ceil", |x: f64| x.ceil());
    environment.add_function("min", |values: Rest<Value>| extreme(&values, std::cmp::Ordering::Less));
    environment.add_function("max", |values: Rest<Value>| extreme(&values, std::cmp::Ordering::Greater));
    environment
}

fn extreme(values: &[Value], wanted: std::cmp::Ordering) -> Result<Value, Error> {
    values
        .iter()
        .cloned()
        .reduce(|best, value| if value.cmp(&best) == wanted { value } else { best })
        .ok_or_else(|| Error::new(ErrorKind::MissingArgument, "at least one number is needed"))
}

/// A compiled expression.
#[derive(Debug)]
pub(crate) struct Formula<'env> {
    expression: Expression<'env, 'static>,
    /// The expression as it was written.
    pub(crate) text: String,
    /// Settings it reads.
    pub(crate) reads: Vec<&'static str>,
}

/// Why an expression cannot be used.
pub(crate) struct BadFormula {
    pub(crate) found: String,
    pub(crate) expected: String,
    pub(crate) hint: Option<String>,
}

/// Compiles an expression and checks that all it names exists.
pub(crate) fn compile<'env>(
    environment: &'env Environment<'static>,
    text: &str,
) -> Result<Formula<'env>, BadFormula> {
    let expression = environment.compile_expression_owned(text.to_owned()).map_err(|error| BadFormula {
        found: format!("{text:?}: {}", plain(&error)),
        expected: "a minijinja expression, for example \"sae.d_sae >= 16384 and train.lr > 5e-4\"".to_owned(),
        hint: operator_hint(text),
    })?;
    let mut names: Vec<String> = expression.undeclared_variables(true).into_iter().collect();
    names.sort();
    let globals: Vec<String> = environment.globals().map(|(name, _)| name.to_owned()).collect();
    let mut reads = Vec::new();
    for name in names {
        if let Some(key) = trial_keys().find(|key| key.name == name) {
            reads.push(key.name);
        } else if let Some(read_only) = READ_ONLY.iter().find(|read_only| **read_only == name) {
            reads.push(read_only);
        } else if !globals.contains(&name) {
            return Err(BadFormula {
                found: format!("`{name}` in {text:?}"),
                expected: "settings of a trial, train.steps or train.schedule_steps".to_owned(),
                hint: match find(&name) {
                    Some(_) => Some(format!("`{name}` is a setting of the sweep, not of a trial")),
                    None => suggest::nearest(&name, READ_ONLY.iter().copied())
                        .filter(|read_only| strsim::damerau_levenshtein(&name, read_only) <= 2)
                        .map(|read_only| format!("did you mean `{read_only}`?"))
                        .or_else(|| suggest::setting(&name)),
                },
            });
        }
    }
    Ok(Formula { expression, text: text.to_owned(), reads })
}

fn operator_hint(text: &str) -> Option<String> {
    if text.contains("&&") || text.contains("||") {
        return Some("write `and`, `or`, `not`".to_owned());
    }
    let single = text.replace("==", "").replace(">=", "").replace("<=", "").replace("!=", "");
    single.contains('=').then(|| "equality is `==`".to_owned())
}

/// minijinja's message without its name for the source.
fn plain(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

impl Formula<'_> {
    /// Settings that the value depends on, seen through `auto` and the read-only values.
    pub(crate) fn depends_on(&self) -> impl Iterator<Item = &'static str> {
        self.reads.iter().flat_map(|name| match *name {
            "train.steps" | "train.schedule_steps" => vec!["train.tokens", "train.batch_size"],
            "train.lr_end" => vec!["train.lr_end", "train.lr", "train.lr_scheduler_name"],
            "train.n_restart_cycles" => vec!["train.n_restart_cycles", "train.lr_scheduler_name"],
            "sae.jumprelu_tanh_scale" => vec!["sae.jumprelu_tanh_scale", MODE],
            "sae.target_l0" => vec!["sae.target_l0", MODE],
            "store.tokens" => vec!["store.tokens", "train.tokens"],
            other => vec![other],
        })
    }

    /// The value for a trial.
    pub(crate) fn value(&self, context: &Value) -> Result<figment::value::Value, String> {
        let value = self.expression.eval(context).map_err(|error| plain(&error))?;
        written(&value)
            .ok_or_else(|| format!("the result is {value}, neither number, text nor true or false"))
    }
}

/// The settings of a trial as expressions see them.
pub(crate) fn context(settings: &BTreeMap<&'static str, Setting>) -> Value {
    let view = View::new(settings);
    let mut sections: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    let mut set = |name: &str, value: Value| {
        if let Some((section, key)) = name.split_once('.') {
            sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value);
        }
    };
    for key in trial_keys() {
        if let Some(setting) = view.resolved(key.name) {
            set(key.name, expression_value(&setting));
        }
    }
    if let (Some(steps), Some(schedule_steps)) = (view.steps(), view.schedule_steps()) {
        set("train.steps", steps.into());
        set("train.schedule_steps", schedule_steps.into());
    }
    let sections: BTreeMap<String, Value> =
        sections.into_iter().map(|(section, values)| (section, values.into())).collect();
    sections.into()
}

fn expression_value(setting: &Setting) -> Value {
    match setting {
        Setting::Bool(x) => (*x).into(),
        Setting::Int(x) => (*x).into(),
        Setting::Float(x) => (*x).into(),
        Setting::Text(x) => x.as_str().into(),
        Setting::Words(words) => words.clone().into(),
        Setting::Sizes(sizes) => sizes.clone().into(),
        Setting::Auto => "auto".into(),
    }
}

fn written(value: &Value) -> Option<figment::value::Value> {
    use minijinja::value::ValueKind;
    match value.kind() {
        ValueKind::Bool => Some(value.is_true().into()),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Into::into),
        ValueKind::Number => f64::try_from(value.clone()).ok().map(Into::into),
        ValueKind::String => value.as_str().map(|text| text.to_owned().into()),
        _ => None,
    }
}
