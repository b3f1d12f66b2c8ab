//! All that a template gets. The comment at the top of `templates/report.md` describes it for users; keep
//! both the same.

use super::{axes, failures, figures, plot::PlotError, ranking, sections, text, truth};
use crate::metric::{Needs, metric};
use crate::table::{RunData, Tables, recovery_series};
use minijinja::{Value, context};

/// Figures by file name, in the order of the report.
pub(super) type Figures = Vec<(String, String)>;

/// The context, and the figures that it names.
pub(super) fn context(run: &RunData, tables: &Tables) -> Result<(Value, Figures), PlotError> {
    let mut drawn: Figures = Vec::new();
    let mut keep = |name: String, svg: Option<String>| {
        svg.map(|svg| {
            let path = format!("figures/{name}");
            drawn.push((name, svg));
            path
        })
    };
    let series = recovery_series(run);
    let recovery = keep("recovery.svg".to_owned(), figures::recovery_figure(&series)?);
    let mut frontiers: Vec<Value> = Vec::new();
    // Recovery rises and falls with L0; it has a figure of its own.
    let is_fidelity = |name| metric(name).is_some_and(|metric| metric.needs != Needs::Truth);
    for frontier in tables.frontiers.iter().filter(|frontier| is_fidelity(frontier.metric)) {
        let name = format!("frontier-{}.svg", frontier.metric);
        let figure = keep(name, figures::frontier_figure(run, frontier)?);
        let title = text::metric_title(frontier.metric);
        frontiers.push(context! { title => title, figure => figure, points => frontier.points.len() });
    }
    let effects_figure = keep("effects.svg".to_owned(), figures::effects_figure(run, &tables.effects)?);
    let curves = figures::curves_figure(run)?.map(|curves| {
        let figure = keep("curves.svg".to_owned(), Some(curves.svg));
        context! {
            figure => figure,
            shown => curves.shown,
            available => curves.available,
            diverged => curves.diverged,
            metrics => curves.metrics,
        }
    });
    let density_trials = figures::density_trials(run, &tables.frontiers);
    let density = keep("density.svg".to_owned(), figures::density_figure(&density_trials)?).map(|figure| {
        context! { figure => figure, trials => density_trials.len() }
    });
    let objective = &run.objective;
    let value = context! {
        name => run.name.clone(),
        folder => run.folder.clone(),
        strategy => run.strategy.clone(),
        objective => context! {
            metric => objective.metric.clone(),
            title => text::metric_title(&objective.metric),
            goal => axes::goal_words(objective.goal),
        },
        notes => run.notes.clone(),
        outcomes => sections::outcomes(run),
        axes => sections::axis_lines(run, &tables.effects),
        truth => truth::truth(run, &series, recovery),
        stores => sections::stores(run),
        host => context! {
            cpu => run.host.cpu.clone(),
            cores => run.host.cores,
            isa => run.host.isa.clone(),
            os => run.host.os.clone(),
            saesweep => run.host.saesweep.clone(),
        },
        time => sections::time(run),
        frontiers => frontiers,
        frontier => ranking::frontier_table(run, &tables.frontiers),
        sparsity_mix => ranking::sparsity_mix(run),
        best => ranking::best(run),
        effects => ranking::effects(run, tables),
        effects_figure => effects_figure,
        curves => curves,
        dead => sections::dead(run),
        density => density,
        failures => failures::failures(run),
        fixed => sections::fixed(run),
        metrics => sections::metrics(run),
    };
    Ok((value, drawn))
}
