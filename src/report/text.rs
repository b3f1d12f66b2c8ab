//! Numbers, settings and tables as Markdown text.

use crate::metric::metric;
use minijinja::{Value, context};
use serde_json::Value as Setting;

/// A number with four significant digits.
pub(super) fn number(value: f64) -> String {
    significant(value, 4)
}

/// A number with at most `digits` significant digits, in powers of ten when very large or small.
pub(super) fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if !value.is_finite() {
        return value.to_string();
    }
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').expect("invariant: the format has an exponent");
    let exponent: i32 = exponent.parse().expect("invariant: the exponent is a number");
    let powers = format!("{}e{exponent}", trim_zeros(mantissa));
    if !(-3..6).contains(&exponent) {
        return powers;
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    let plain = trim_zeros(&format!("{value:.decimals$}")).to_owned();
    // 1e-3 rather than 0.001, in line with 1e-4.
    if exponent == -3 && powers.len() < plain.len() { powers } else { plain }
}

fn trim_zeros(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

/// A metric's value as tables show it: shares in percent, scores with four decimals.
pub(super) fn metric_value(name: &str, value: f64) -> String {
    match name {
        "dead_share" | "dense_share" | "recovered_share" => format!("{} %", trim_tenths(100.0 * value)),
        "l0" | "true_l0" => match value.abs() {
            100.0.. => format!("{value:.0}"),
            10.0.. => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        },
        _ if is_score(name) && value.abs() < 10.0 => format!("{value:.4}"),
        _ => number(value),
    }
}

fn trim_tenths(percent: f64) -> String {
    if percent != 0.0 && percent.abs() < 0.1 { significant(percent, 1) } else { format!("{percent:.1}") }
}

fn is_score(name: &str) -> bool {
    matches!(
        name,
        "ce_loss_score"
            | "explained_variance"
            | "explained_variance_legacy"
            | "cossim"
            | "kl_div_score"
            | "l2_ratio"
            | "mmcs"
            | "uniqueness"
    )
}

/// A difference or deviation of a metric: two digits, or as many as the metric itself shows.
pub(super) fn metric_difference(name: &str, value: f64) -> String {
    match name {
        "dead_share" | "dense_share" | "recovered_share" => metric_value(name, value),
        _ if is_score(name) => format!("{value:.4}"),
        _ => significant(value, 2),
    }
}

/// A metric's value where there is one.
pub(super) fn metric_or_dash(name: &str, value: Option<f64>) -> String {
    value.map_or_else(dash, |value| metric_value(name, value))
}

/// What stands for nothing.
pub(super) fn dash() -> String {
    "–".to_owned()
}

/// The heading of a metric: its title, or its name when it is none of ours.
pub(super) fn metric_title(name: &str) -> String {
    metric(name).map_or_else(|| name.to_owned(), |metric| metric.title.to_owned())
}

/// A setting's value: whole numbers in full, others with four digits.
pub(super) fn setting(value: Option<&Setting>) -> String {
    match value {
        None | Some(Setting::Null) => dash(),
        Some(Setting::String(word)) => word.clone(),
        Some(Setting::Number(it)) if it.is_f64() => number(it.as_f64().unwrap_or(f64::NAN)),
        Some(other) => other.to_string(),
    }
}

/// A count with the noun in the right number.
pub(super) fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// `1 234 567` with thin gaps, for whole numbers of any size.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the unit that suits them.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", significant(value, 3), units[unit])
}

/// Seconds as hours, minutes or seconds.
pub(super) fn duration(secs: f64) -> String {
    let whole = secs.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Text that Markdown shows as it stands, on one line, also inside a table.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' | '*' | '`' | '[' | ']' => out.extend(['\\', c]),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Inline code. Backticks inside would end it, so they become quotes.
pub(super) fn code(text: &str) -> String {
    let inner: String = text
        .chars()
        .map(|c| {
            if c == '`' {
                '\''
            } else if c.is_control() {
                ' '
            } else {
                c
            }
        })
        .collect();
    format!("`{}`", inner.replace('|', "\\|"))
}

/// A fence longer than any run of backticks in `text`.
pub(super) fn fence(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(3.max(longest + 1))
}

/// A table before it becomes Markdown. Cells hold Markdown; escape what comes from outside.
#[derive(Debug, Default, Clone)]
pub(super) struct TextTable {
    titles: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

impl TextTable {
    pub(super) fn left(mut self, title: impl Into<String>) -> Self {
        self.titles.push((title.into(), Align::Left));
        self
    }

    pub(super) fn right(mut self, title: impl Into<String>) -> Self {
        self.titles.push((title.into(), Align::Right));
        self
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.titles.len());
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For templates: `columns` (each `title` and `right`), `rows` (lists of cells), `markdown`.
    pub(super) fn to_value(&self) -> Value {
        let columns: Vec<Value> = self
            .titles
            .iter()
            .map(|(title, align)| context! { title => title.clone(), right => *align == Align::Right })
            .collect();
        let rows: Vec<Value> = self.rows.iter().map(|row| Value::from(row.clone())).collect();
        context! { columns => columns, rows => rows, markdown => self.markdown() }
    }

    /// The table in Markdown, columns padded so that it reads well as plain text too.
    pub(super) fn markdown(&self) -> String {
        let width = |i: usize| {
            let cells = self.rows.iter().map(|row| row[i].chars().count());
            cells.chain([self.titles[i].0.chars().count(), 3]).max().unwrap_or(3)
        };
        let widths: Vec<usize> = (0..self.titles.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &String>| {
            let padded: Vec<String> = cells
                .zip(&self.titles)
                .zip(&widths)
                .map(|((cell, (_, align)), &width)| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                })
                .collect();
            format!("| {} |", padded.join(" | "))
        };
        let rules: Vec<String> = self
            .titles
            .iter()
            .zip(&widths)
            .map(|((_, align), &width)| match align {
                Align::Left => "-".repeat(width),
                Align::Right => format!("{}:", "-".repeat(width - 1)),
            })
            .collect();
        let head = line(&mut self.titles.iter().map(|(title, _)| title));
        let mut lines = vec![head, format!("| {} |", rules.join(" | "))];
        lines.extend(self.rows.iter().map(|row| line(&mut row.iter())));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_short() {
        let check = |value, expected: &str| assert_eq!(number(value), expected);
        check(0.0, "0");
        check(1e-5, "1e-5");
        check(3.162_277e-4, "3.162e-4");
        check(0.001, "1e-3");
        check(0.001_234, "0.001234");
        check(0.05, "0.05");
        check(58.25, "58.25");
        check(1234.567, "1235");
        check(999_999.9, "1e6");
        check(-0.5, "-0.5");
        check(2e9, "2e9");
    }

    #[test]
    fn settings_keep_whole_numbers_whole() {
        assert_eq!(setting(Some(&json!(30_720_000))), "30720000");
        assert_eq!(setting(Some(&json!(5e-5))), "5e-5");
        assert_eq!(setting(Some(&json!(5.0))), "5");
        assert_eq!(setting(Some(&json!("topk"))), "topk");
        assert_eq!(setting(Some(&json!(true))), "true");
        assert_eq!(setting(None), "–");
    }

    #[test]
    fn metrics_have_their_own_forms() {
        let check = |name, value, expected: &str| assert_eq!(metric_value(name, value), expected);
        check("dead_share", 0.1234, "12.3 %");
        check("dense_share", 0.0004, "0.04 %");
        check("l0", 58.27, "58.3");
        check("l0", 3127.4, "3127");
        check("ce_loss_score", 0.97, "0.9700");
        check("mse", 12.3456, "12.35");
    }

    #[test]
    fn outside_text_cannot_break_a_table() {
        let mut table = TextTable::default().left("a").right("b");
        table.row(vec![escape("x|y\n<b>"), code("p|`q`")]);
        let markdown = table.markdown();
        assert_eq!(markdown.lines().count(), 3);
        assert_eq!(markdown.lines().nth(2).unwrap(), "| x\\|y &lt;b> | `p\\|'q'` |");
    }

    #[test]
    fn a_fence_is_longer_than_what_it_holds() {
        assert_eq!(fence("plain"), "```");
        assert_eq!(fence("a ```` b"), "`````");
    }

    #[test]
    fn sizes_and_times_suit_their_unit() {
        assert_eq!(bytes(4_211_081_216), "3.92 GiB");
        assert_eq!(bytes(12), "12 B");
        assert_eq!(duration(59.4), "59 s");
        assert_eq!(duration(754.0), "12 min 34 s");
        assert_eq!(duration(7260.0), "2 h 1 min");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
    }
}
