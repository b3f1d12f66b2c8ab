//! Reading `[derive]` and `[[exclude]]`.

use super::{
    error::Fault,
    expressions::{BadFormula, Formula, compile},
    setting::{show, write_key},
    suggest,
    variation::{Derived, Exclude, Reader},
};
use figment::value::Value;

impl<'env> Reader<'_, 'env> {
    pub(crate) fn derived(&mut self) {
        let mut all = Vec::new();
        for (name, value) in self.flat_part("derive") {
            let path = format!("derive.{name}");
            let place = self.layers.place(&path, &value);
            if matches!(name.as_str(), "train.steps" | "train.schedule_steps") {
                let found = format!("{name} = {}", show(&value));
                let expected = "a setting; this one follows from train.tokens and train.batch_size";
                self.problem(place, &path, Fault::UnknownKey, found, expected, None);
                continue;
            }
            let Some(key) = self.key(&name, &path, &value) else { continue };
            if self.is_fixed_above(key, "its [derive] expression", &place)
                || !self.claim(key, "[derive]", &path, &place)
            {
                continue;
            }
            if let Some(given) =
                self.variation.given.iter().find(|given| given.settings.contains_key(key.name))
            {
                let found = format!("[derive], besides a value in [[trial]] ({})", given.place.phrase());
                let hint = Some("[derive] replaces the value in every trial".to_owned());
                self.problem(place.clone(), &path, Fault::Contradiction, found, "one of the two", hint);
            }
            match self.formula(&path, &value) {
                Some(formula) => all.push(Derived { key, formula, place }),
                None => {
                    self.variation.broken.insert(key.name);
                }
            }
        }
        self.variation.derived = self.ordered(all);
    }

    /// Sorts derived settings so that each comes after those it reads. The order of the file plays no part.
    fn ordered(&mut self, mut open: Vec<Derived<'env>>) -> Vec<Derived<'env>> {
        let mut ordered: Vec<Derived<'env>> = Vec::new();
        while !open.is_empty() {
            let ready = open.iter().position(|derived| {
                !derived.formula.depends_on().any(|name| open.iter().any(|other| other.key.name == name))
            });
            let Some(ready) = ready else {
                let names: Vec<&str> = open.iter().map(|derived| derived.key.name).collect();
                let (first, circle) = (&open[0], names.join(", "));
                let (place, path) = (first.place.clone(), format!("derive.{}", first.key.name));
                let found = if open.len() == 1 {
                    format!("{circle} reads itself in {:?}", first.formula.text)
                } else {
                    format!("expressions that wait for each other: {circle}")
                };
                self.problem(place, &path, Fault::BadExpression, found, "expressions without a circle", None);
                self.variation.broken.extend(names);
                return ordered;
            };
            ordered.push(open.remove(ready));
        }
        ordered
    }

    fn formula(&mut self, path: &str, value: &Value) -> Option<Formula<'env>> {
        let place = self.layers.place(path, value);
        let Some(text) = value.as_str() else {
            let hint = Some(format!("write it in quotes: \"{}\"", show(value)));
            self.problem(place, path, Fault::WrongType, show(value), "an expression in quotes", hint);
            return None;
        };
        match compile(self.environment, text) {
            Ok(formula) => Some(formula),
            Err(BadFormula { found, expected, hint }) => {
                self.problem(place, path, Fault::BadExpression, found, &expected, hint);
                None
            }
        }
    }

    pub(crate) fn excludes(&mut self) {
        for (path, table, entries) in self.list_part("exclude") {
            for (name, value) in
                entries.iter().filter(|(name, _)| !matches!(name.as_str(), "when" | "reason"))
            {
                let path = format!("{path}.{name}");
                let place = self.layers.place(&path, value);
                let found = format!("{} = {}", write_key(name), show(value));
                let hint =
                    suggest::nearest(name, ["when", "reason"]).map(|word| format!("did you mean {word}?"));
                self.problem(place, &path, Fault::UnknownKey, found, "when, and optionally reason", hint);
            }
            let Some(when) = entries.get("when") else {
                let place = self.layers.place(&path, &table);
                let expected = "when = \"…\", an expression over the trial's settings";
                self.problem(
                    place,
                    &format!("{path}.when"),
                    Fault::Missing,
                    "nothing".to_owned(),
                    expected,
                    None,
                );
                continue;
            };
            let reason = match entries.get("reason") {
                None => None,
                Some(value) => match value.as_str() {
                    Some(text) => Some(text.to_owned()),
                    None => {
                        let path = format!("{path}.reason");
                        let place = self.layers.place(&path, value);
                        self.problem(place, &path, Fault::WrongType, show(value), "text in quotes", None);
                        None
                    }
                },
            };
            let path = format!("{path}.when");
            let place = self.layers.place(&path, when);
            if let Some(formula) = self.formula(&path, when) {
                self.variation.excludes.push(Exclude { formula, reason, place, path });
            }
        }
    }
}
