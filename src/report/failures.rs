//! Trials that were lost: alike ones together, each kind with the last lines of one log.

use super::text;
use crate::table::{Outcome, RunData, TrialRow};
use minijinja::{Value, context};

/// Kinds of failure shown.
const MAX_KINDS: usize = 6;
/// Trials named per kind.
const MAX_NAMED: usize = 6;
/// Lines of a log.
const MAX_LINES: usize = 12;
/// Characters of a line.
const MAX_CHARS: usize = 160;

/// The kinds of failure, most frequent first.
pub(super) fn failures(run: &RunData) -> Value {
    let mut kinds: Vec<((Outcome, String), Vec<&TrialRow>)> = Vec::new();
    for trial in run.trials.iter().filter(|t| matches!(t.outcome, Outcome::Diverged | Outcome::Failed)) {
        let kind = (trial.outcome, without_numbers(trial.reason.as_deref().unwrap_or_default()));
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, trials)) => trials.push(trial),
            None => kinds.push((kind, vec![trial])),
        }
    }
    kinds.sort_by_key(|(_, trials)| (std::cmp::Reverse(trials.len()), trials[0].index));
    let shown: Vec<Value> =
        kinds.iter().take(MAX_KINDS).map(|((outcome, _), trials)| kind_value(*outcome, trials)).collect();
    context! {
        n => kinds.iter().map(|(_, trials)| trials.len()).sum::<usize>(),
        kinds => shown,
        omitted => kinds.len().saturating_sub(MAX_KINDS),
    }
}

fn kind_value(outcome: Outcome, trials: &[&TrialRow]) -> Value {
    let first = trials[0];
    let named: Vec<String> = trials.iter().take(MAX_NAMED).map(|trial| text::code(&trial.id.0)).collect();
    let more = trials.len().saturating_sub(MAX_NAMED);
    let log = log_text(&first.log_tail);
    context! {
        n => trials.len(),
        outcome => outcome.as_str(),
        trials => named.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() },
        reason => first.reason.clone(),
        example => first.id.0.clone(),
        fence => text::fence(&log),
        log => (!log.is_empty()).then_some(log),
    }
}

/// Reasons that differ in a step or an address alone are one kind.
fn without_numbers(reason: &str) -> String {
    let mut out = String::new();
    for c in reason.chars() {
        let c = if c.is_ascii_digit() { '#' } else { c };
        if !(c == '#' && out.ends_with('#')) {
            out.push(c);
        }
    }
    out
}

/// The end of a log, bounded and without what would colour or move a terminal's cursor.
fn log_text(lines: &[String]) -> String {
    let clean: Vec<String> = lines.iter().map(|line| clean(line)).filter(|line| !line.is_empty()).collect();
    clean[clean.len().saturating_sub(MAX_LINES)..].join("\n")
}

fn clean(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.trim_end().chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            // A control sequence ends with a character from @ to ~.
            while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
        } else if c == '\t' || !c.is_control() {
            out.push(c);
        }
    }
    if out.chars().count() > MAX_CHARS {
        out = out.chars().take(MAX_CHARS - 1).collect();
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_bounded_and_plain() {
        let mut lines: Vec<String> = (0..50).map(|i| format!("line {i}")).collect();
        lines.push(format!("\u{1b}[31mred\u{1b}[0m {}\r", "x".repeat(500)));
        let log = log_text(&lines);
        assert_eq!(log.lines().count(), MAX_LINES);
        let last = log.lines().last().unwrap();
        assert!(
            last.starts_with("red xxx") && last.ends_with('…') && last.chars().count() == MAX_CHARS,
            "{last}"
        );
    }

    #[test]
    fn steps_do_not_tell_failures_apart() {
        assert_eq!(without_numbers("NaN at step 1834"), without_numbers("NaN at step 7"));
        assert_ne!(without_numbers("killed by signal 9"), without_numbers("exit code 9"));
    }
}
