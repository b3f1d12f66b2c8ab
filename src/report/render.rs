//! The report itself: template and context to Markdown.

use super::{context::context, plot::PlotError, text};
use crate::table::{RunData, Tables};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, syntax::SyntaxConfig};

/// The template when the sweep names none.
const TEMPLATE: &str = include_str!("../../templates/report.md");

/// A report ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The text of `report.md`; it names figures as `figures/<file name>`.
    pub markdown: String,
    /// File name and SVG text of every figure.
    pub figures: Vec<(String, String)>,
}

/// A report that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The template has an error; the message names the line.
    #[error("report template: {0:#}")]
    Template(#[from] minijinja::Error),
    /// A figure could not be drawn.
    #[error(transparent)]
    Figure(#[from] PlotError),
}

/// Makes the report of a run. `template` replaces the built-in one; what it may use is described at the top
/// of `templates/report.md`.
///
/// # Errors
/// When the template is faulty or a figure cannot be drawn.
pub fn report(run: &RunData, tables: &Tables, template: Option<&str>) -> Result<Report, ReportError> {
    let (context, figures) = context(run, tables)?;
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_name| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_filter("md", |text: String| text::escape(&text));
    environment.add_filter("code", |text: String| text::code(&text));
    environment.add_template("report.md", template.unwrap_or(TEMPLATE))?;
    let rendered = environment.get_template("report.md")?.render(context)?;
    Ok(Report { markdown: tidy(&rendered), figures })
}

/// Blank lines that stand for parts a run does not have are closed up, except inside code blocks.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank = true;
    let mut fence: Option<String> = None;
    for line in text.lines() {
        let line = line.trim_end();
        let ticks = line.len() - line.trim_start_matches('`').len();
        match &fence {
            Some(open) if line == open => fence = None,
            None if ticks >= 3 => fence = Some("`".repeat(ticks)),
            _ => {}
        }
        if line.is_empty() && blank && fence.is_none() {
            continue;
        }
        blank = line.is_empty();
        out.push_str(line);
        out.push('\n');
    }
    while out.ends_with("\n\n") {
        out.pop();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::samples;

    #[test]
    fn a_template_of_ones_own_replaces_the_built_in_one() {
        let run = samples::grid_run();
        let template = "{{ name }}: {{ best.trial.id|code }}, {{ outcomes.done }} of {{ outcomes.planned }}";
        let report = report(&run, &Tables::of(&run), Some(template)).unwrap();
        assert!(report.markdown.starts_with("tinystories-mlp-out: `"), "{}", report.markdown);
        assert!(report.markdown.ends_with(", 14 of 16\n"), "{}", report.markdown);
    }

    #[test]
    fn python_is_shown_where_sae_lens_opens_the_best() {
        let shown = |settings: &[(&str, &str)]| {
            let mut run = samples::grid_run();
            for trial in &mut run.trials {
                trial
                    .settings
                    .extend(settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())));
            }
            report(&run, &Tables::of(&run), None).unwrap().markdown.contains("SAE.load_from_disk")
        };
        assert!(shown(&[]) && shown(&[("sae.architecture", "topk")]));
        assert!(shown(&[("model.hook_out", "blocks.0.hook_mlp_out")]));
        assert!(!shown(&[("model.hook_out", "blocks.0.hook_mlp_out"), ("sae.architecture", "topk")]));
    }

    #[test]
    fn a_faulty_template_names_its_line() {
        let run = samples::grid_run();
        for template in ["a\n{{ nonsense }}", "a\n{% if %}"] {
            let err = report(&run, &Tables::of(&run), Some(template)).unwrap_err();
            assert!(err.to_string().contains("report.md:2"), "{err}");
        }
    }

    #[test]
    fn blank_lines_are_closed_up_outside_code() {
        assert_eq!(tidy("\n\na\n\n\n\nb\n```\nx\n\n\ny\n```\n\n\n"), "a\n\nb\n```\nx\n\n\ny\n```\n");
    }
}
