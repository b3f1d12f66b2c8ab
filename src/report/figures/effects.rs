//! The objective against each varied setting: one panel per axis, one mark per finished trial, coloured by
//! its L0, and a line through the means.

use super::WIDTH;
use crate::report::{
    choose::setting_axis,
    plot::{
        Axis, Canvas, Entry, GREY, INK, Marker, Panel, PlotError, Rect, Scale, Stroke, draw_legend,
        sequential,
    },
    text,
};
use crate::table::{AxisEffect, AxisKind, LevelRange, RunData, TrialRow, compare_settings};
use serde_json::Value;

/// Panels in the figure.
const MAX_PANELS: usize = 6;
/// Names on a categorical axis.
const MAX_NAMES: usize = 8;
const PANEL_HEIGHT: f64 = 178.0;
/// With more trials than this the marks are smaller.
const MANY: usize = 150;

/// Draws the figure; `None` when there is no axis or no finished trial.
pub(crate) fn effects_figure(run: &RunData, effects: &[AxisEffect]) -> Result<Option<String>, PlotError> {
    let objective = run.objective.metric.as_str();
    let scored: Vec<(&TrialRow, f64)> =
        run.trials.iter().filter_map(|trial| Some((trial, trial.metric(objective)?))).collect();
    let l0 = Axis::over(Scale::Log, scored.iter().filter_map(|(trial, _)| trial.metric("l0")), 0.0);
    let Some(y) = objective_axis(&scored) else { return Ok(None) };
    let panels: Vec<(&AxisEffect, SettingAxis)> = effects
        .iter()
        .filter_map(|effect| Some((effect, setting_axis_of(effect)?)))
        .take(MAX_PANELS)
        .collect();
    if panels.is_empty() {
        return Ok(None);
    }
    let title = text::metric_title(objective);
    let radius = if scored.len() > MANY { 2.4 } else { 4.0 };
    let rows = panels.len().div_ceil(2);
    let height = 14.0 + rows as f64 * (PANEL_HEIGHT + 58.0);
    let svg = Canvas::draw(WIDTH, height as u32, &format!("{title} by each setting"), |canvas| {
        for (i, (effect, setting)) in panels.iter().enumerate() {
            let rect = Rect {
                left: 68.0 + (i % 2) as f64 * 318.0,
                top: 14.0 + (i / 2) as f64 * (PANEL_HEIGHT + 58.0),
                width: 240.0,
                height: PANEL_HEIGHT,
            };
            let panel = Panel { rect, x: setting.axis, y };
            panel.draw_frame_with(canvas, &effect.key, &title, &setting.ticks)?;
            let means: Vec<(f64, f64)> = effect
                .levels
                .iter()
                .filter_map(|level| Some((setting.middle(&level.range)?, level.objective?.mean)))
                .collect();
            // Points with the same value are spread a little, so that their number shows.
            let aside = match (&setting.names, setting.own_ticks) {
                (Some(names), _) => 0.16 * rect.width / names.len() as f64,
                (None, true) => 5.0,
                (None, false) => 0.0,
            };
            for (trial, value) in &scored {
                let Some(x) = setting.position(trial.settings.get(&effect.key).unwrap_or(&Value::Null))
                else {
                    continue;
                };
                let colour = l0
                    .zip(trial.metric("l0").filter(|l0| *l0 > 0.0))
                    .map_or(GREY, |(axis, l0)| sequential(axis.place(l0)));
                let (px, py) = panel.at(x, *value);
                let px = px + aside * spread_aside(trial.index);
                let (top, bottom) = (rect.top + 5.0, rect.bottom() - 5.0);
                let marker = match py {
                    _ if py > rect.bottom() => Marker::TriangleDown,
                    _ if py < rect.top => Marker::Triangle,
                    _ => Marker::Disc,
                };
                marker.draw(canvas, (px, py.clamp(top, bottom)), radius, colour.alpha(0.85))?;
            }
            let stroke = Stroke { colour: INK, width: 1.4 };
            if setting.names.is_none() {
                panel.curve(canvas, &means, stroke, true)?;
            } else {
                // Between names there is nothing.
                for (x, mean) in means {
                    panel.curve(canvas, &[(x - 0.3, mean), (x + 0.3, mean)], stroke, true)?;
                }
            }
        }
        let mut entries = Vec::new();
        if let Some(axis) = l0 {
            entries.extend([Entry::Heading("L0".to_owned()), Entry::Bar(axis), Entry::Gap]);
        }
        entries.push(Entry::Line { colour: INK, dashed: true, text: "mean".to_owned() });
        let left = if panels.len() == 1 { 340.0 } else { 644.0 };
        draw_legend(canvas, Rect { left, top: 14.0, width: 160.0, height: PANEL_HEIGHT }, &entries)
    })?;
    Ok(Some(svg))
}

/// A place in [-1, 1] that neighbours in the plan don't share.
fn spread_aside(index: usize) -> f64 {
    // Multiples of the golden ratio spread evenly whatever their number.
    2.0 * (index as f64 * 0.618_033_988_75).fract() - 1.0
}

/// The axis of the objective; a few trials that went badly wrong don't press the others together.
fn objective_axis(scored: &[(&TrialRow, f64)]) -> Option<Axis> {
    let mut values: Vec<f64> = scored.iter().map(|(_, value)| *value).collect();
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (*values.get(values.len() / 4)?, *values.get(values.len() * 3 / 4)?);
    let room = 3.0 * (upper - lower);
    let near = |value: &f64| room == 0.0 || (lower - room..=upper + room).contains(value);
    Axis::over(Scale::Linear, values.into_iter().filter(near), 0.07)
}

/// Where the values of a setting lie along a panel.
struct SettingAxis {
    axis: Axis,
    ticks: Vec<(f64, String)>,
    /// Whether the ticks are the values themselves.
    own_ticks: bool,
    /// For names: all of them; the position of each is its place in the list.
    names: Option<Vec<Value>>,
}

impl SettingAxis {
    fn position(&self, value: &Value) -> Option<f64> {
        match &self.names {
            None => value.as_f64(),
            Some(names) => {
                names.iter().position(|known| compare_settings(known, value).is_eq()).map(|i| i as f64)
            }
        }
    }

    fn middle(&self, range: &LevelRange) -> Option<f64> {
        match *range {
            LevelRange::One(ref value) => self.position(value),
            LevelRange::Between(from, to) if self.axis.scale() == Scale::Log => Some((from * to).sqrt()),
            LevelRange::Between(from, to) => Some((from + to) / 2.0),
        }
    }
}

/// `None` for settings that cannot be laid out: one value only, or too many names.
fn setting_axis_of(effect: &AxisEffect) -> Option<SettingAxis> {
    if effect.levels.len() < 2 {
        return None;
    }
    if effect.kind == AxisKind::Categorical {
        let names: Vec<Value> =
            effect.levels.iter().filter_map(|level| one_value(&level.range)).cloned().collect();
        let ticks = names.iter().enumerate().map(|(i, name)| (i as f64, text::setting(Some(name)))).collect();
        let axis = Axis::between(-0.5, names.len() as f64 - 0.5);
        return (names.len() <= MAX_NAMES).then_some(SettingAxis {
            axis,
            ticks,
            own_ticks: true,
            names: Some(names),
        });
    }
    let mut numbers: Vec<f64> = Vec::new();
    let mut ranges = false;
    for level in &effect.levels {
        match &level.range {
            LevelRange::One(value) => numbers.extend(value.as_f64()),
            LevelRange::Between(from, to) => {
                ranges = true;
                numbers.extend([*from, *to]);
            }
        }
    }
    let axis = setting_axis(&numbers, 0.08)?;
    // A few values are their own ticks.
    let own = !ranges && numbers.len() <= 6;
    let ticks = if own { numbers.iter().map(|&n| (n, text::number(n))).collect() } else { axis.ticks(4) };
    Some(SettingAxis { axis, ticks, own_ticks: own, names: None })
}

fn one_value(range: &LevelRange) -> Option<&Value> {
    match range {
        LevelRange::One(value) => Some(value),
        LevelRange::Between(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Outcome, axis_effects, frontiers, samples};

    fn draw(run: &RunData) -> Option<String> {
        effects_figure(run, &axis_effects(run, &frontiers(run))).unwrap()
    }

    #[test]
    fn every_axis_has_a_panel() {
        let svg = draw(&samples::random_run(40)).unwrap();
        for key in ["sae.architecture", "sae.d_sae", "sae.l1_coefficient", "sae.k", "train.lr"] {
            assert!(svg.contains(&format!("\n{key}\n")), "{key}");
        }
    }

    #[test]
    fn nothing_finished_or_nothing_varied_means_no_figure() {
        let mut run = samples::grid_run();
        run.varied_keys.clear();
        assert_eq!(draw(&run), None);
        let mut run = samples::grid_run();
        for trial in &mut run.trials {
            trial.outcome = Outcome::Pending;
        }
        assert_eq!(draw(&run), None);
    }

    #[test]
    fn a_few_bad_trials_do_not_stretch_the_axis() {
        let run = samples::grid_run();
        let mut scored: Vec<(&TrialRow, f64)> = run.trials.iter().map(|trial| (trial, 0.9)).collect();
        for (i, point) in scored.iter_mut().enumerate() {
            point.1 += 0.001 * i as f64;
        }
        scored[0].1 = -40.0;
        assert!(objective_axis(&scored).unwrap().place(0.85) < 0.0);
    }
}
