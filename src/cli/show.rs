//! Values as people read them: tables, sizes, times, numbers. And stdout.

use super::CliError;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;
use std::{borrow::Cow, io::Write};

/// Prints to stdout.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::Print)
}

/// Prints a JSON value to stdout.
pub(super) fn print_json(value: &Value) -> Result<(), CliError> {
    print(&format!("{value:#}\n"))
}

/// Prints rows under a heading; columns of numbers stand to the right.
pub(super) fn print_table(header: &[String], rows: &[Vec<String>]) -> Result<(), CliError> {
    print(&table(header, rows))
}

/// Rows under a heading. Never folded to the terminal's width: ids and numbers in pieces are of no use.
fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().map(String::as_str));
    for row in rows {
        table.add_row(row.iter().map(String::as_str));
    }
    for (idx, column) in table.column_iter_mut().enumerate() {
        let is_number = |row: &Vec<String>| {
            row.get(idx).is_none_or(|cell| {
                cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
            })
        };
        if !rows.is_empty() && rows.iter().all(is_number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// `1.5 GiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1h 02m`, `3m 07s`, `12s`, `0.8s`.
pub(super) fn secs(secs: f64) -> String {
    if secs < 9.95 {
        return format!("{secs:.1}s");
    }
    let whole = secs.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h {:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d {:02}h", whole / 86400, whole / 3600 % 24),
    }
}

/// A count with its digits in groups: `30_720_000`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

/// A measured number with four significant digits.
pub(super) fn number(value: f64) -> String {
    let magnitude = value.abs();
    match () {
        () if value == 0.0 => "0".to_owned(),
        () if !(1e-3..1e6).contains(&magnitude) => format!("{value:.3e}"),
        () if magnitude >= 1000.0 => format!("{value:.0}"),
        () if magnitude >= 100.0 => format!("{value:.1}"),
        () if magnitude >= 10.0 => format!("{value:.2}"),
        () if magnitude >= 1.0 => format!("{value:.3}"),
        () => format!("{value:.4}"),
    }
}

/// A setting as one would write it in a sweep, text without quotes.
pub(super) fn setting(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(x) if number.is_f64() && x != 0.0 && !(1e-3..1e6).contains(&x.abs()) => format!("{x:e}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// The last part of a dotted key, for headings: `sae.l1_coefficient` → `l1_coefficient`; the whole key where
/// the last part says too little.
pub(super) fn short_key(key: &str) -> &str {
    match key {
        "model.name" | "store.tokens" | "train.tokens" => key,
        _ => key.rsplit('.').next().unwrap_or(key),
    }
}

/// `1 trial`, `2 trials`.
pub(super) fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Arguments as they are typed into a shell.
pub(super) fn shell_words(args: impl Iterator<Item = String>) -> String {
    // What cannot be quoted, an argument with a NUL, cannot have been typed either.
    let quoted = args.map(|arg| shlex::try_quote(&arg).map_or_else(|_nul| arg.clone(), Cow::into_owned));
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        let args = ["run", "my sweep.toml", "--set", "train.lr=1e-4", "--results", "/data/runs"];
        let words = shell_words(args.iter().map(|&arg| arg.to_owned()));
        assert_eq!(words, "run 'my sweep.toml' --set 'train.lr=1e-4' --results /data/runs");
    }

    #[test]
    fn sizes_times_and_numbers() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(1 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "1.0 GiB"]
        );
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(
            [secs(0.84), secs(9.99), secs(187.0), secs(3725.0), secs(90000.0)],
            ["0.8s", "10s", "3m 07s", "1h 02m", "1d 01h"]
        );
        assert_eq!([count(7), count(1000), count(30_720_000)], ["7", "1_000", "30_720_000"]);
        assert_eq!(
            [number(0.97531), number(41.5), number(1234.5), number(1e-5)],
            ["0.9753", "41.50", "1234", "1.000e-5"]
        );
        assert_eq!(
            [setting(&json!(5e-5)), setting(&json!(2.0)), setting(&json!("topk"))],
            ["5e-5", "2.0", "topk"]
        );
    }

    #[test]
    fn tables_align_numbers_to_the_right() {
        let rows = [vec!["a".to_owned(), "1.5".to_owned()], vec!["bb".to_owned(), "10.25".to_owned()]];
        let text = table(&["id".to_owned(), "l0".to_owned()], &rows);
        assert_eq!(text, "id     l0\na     1.5\nbb  10.25\n");
    }
}
