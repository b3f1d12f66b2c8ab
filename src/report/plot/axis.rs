//! One axis: a range of values, linear or logarithmic, and where its ticks lie.

/// How values are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Equal differences take equal room.
    Linear,
    /// Equal factors take equal room; values must be positive.
    Log,
}

/// A range of values on a scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Axis {
    /// The axis over the finite values (the positive ones when logarithmic) with `margin` of its length free
    /// at both ends; `None` when there is none.
    pub(crate) fn over(scale: Scale, values: impl IntoIterator<Item = f64>, margin: f64) -> Option<Self> {
        let fits = |value: &f64| value.is_finite() && (scale == Scale::Linear || *value > 0.0);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(fits) {
            low = low.min(place_of(scale, value));
            high = high.max(place_of(scale, value));
        }
        if low > high {
            return None;
        }
        if high - low < 1e-9 * high.abs().max(1e-9) {
            // One value: some room around it.
            let room = if scale == Scale::Log { 0.2 } else { 0.1 * high.abs().max(1e-6) };
            (low, high) = (low - room, high + room);
        }
        let room = (high - low) * margin;
        Some(Self { scale, low: low - room, high: high + room })
    }

    /// The axis from `low` to `high` exactly.
    pub(crate) fn between(low: f64, high: f64) -> Self {
        Self { scale: Scale::Linear, low, high }
    }

    pub(crate) fn scale(&self) -> Scale {
        self.scale
    }

    /// Where a value lies, 0 at the low end and 1 at the high end.
    pub(crate) fn place(&self, value: f64) -> f64 {
        (place_of(self.scale, value) - self.low) / (self.high - self.low)
    }

    /// Ticks in the range, about `wanted` of them, with their labels.
    pub(crate) fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        let values = match self.scale {
            Scale::Linear => linear_ticks(self.low, self.high, wanted),
            Scale::Log => log_ticks(self.low, self.high, wanted),
        };
        let decimals = if self.scale == Scale::Linear { decimals_of(&values) } else { 0 };
        let largest = values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        let label = |value: f64| match self.scale {
            Scale::Log => crate::report::text::significant(value, 3),
            Scale::Linear if largest >= 10_000.0 => thousands(value, largest),
            Scale::Linear => format!("{value:.decimals$}"),
        };
        values.into_iter().map(|value| (value, label(value))).collect()
    }
}

fn place_of(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log => value.log10(),
    }
}

fn thousands(value: f64, largest: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if largest >= 1e6 {
        format!("{}M", crate::report::text::significant(value / 1e6, 4))
    } else {
        format!("{}k", crate::report::text::significant(value / 1e3, 4))
    }
}

/// Round numbers whose count comes closest to `wanted`.
fn linear_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let decade = 10f64.powf(((high - low) / wanted.max(1) as f64).log10().floor());
    let ticks = |step: f64| -> Vec<f64> {
        let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
        (first..=last).map(|i| i as f64 * step).collect()
    };
    let miss = |ticks: &Vec<f64>| (ticks.len().max(1) as f64 / wanted.max(1) as f64).ln().abs();
    let sets = [10.0, 5.0, 2.0, 1.0, 0.5].map(|m| ticks(m * decade));
    let enough = sets.into_iter().filter(|set| set.len() >= 3);
    enough.min_by(|a, b| miss(a).total_cmp(&miss(b))).unwrap_or_else(|| ticks(0.2 * decade))
}

/// Decimals that tell neighbouring ticks apart.
fn decimals_of(values: &[f64]) -> usize {
    let step = values.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    if step.is_finite() && step < 1.0 { (-(step.log10() + 1e-6).floor()).clamp(0.0, 8.0) as usize } else { 0 }
}

/// The coarsest set of round numbers that gives enough ticks; plain steps when even the finest gives too few.
fn log_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let sets: [&[f64]; 5] = [
        &[1.0],
        &[1.0, 3.0],
        &[1.0, 2.0, 5.0],
        &[1.0, 2.0, 3.0, 5.0, 7.0],
        &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    ];
    let enough = (2 * wanted).div_ceil(5).max(3);
    for set in sets {
        let values: Vec<f64> = (low.floor() as i32..=high.ceil() as i32)
            .flat_map(|decade| set.iter().map(move |m| m * 10f64.powi(decade)))
            .filter(|value| (low - 1e-9..=high + 1e-9).contains(&value.log10()))
            .collect();
        if values.len() >= enough {
            let every = values.len().div_ceil(2 * wanted);
            return values.into_iter().step_by(every).collect();
        }
    }
    linear_ticks(10f64.powf(low), 10f64.powf(high), wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(axis: Axis) -> Vec<String> {
        axis.ticks(5).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(Axis::between(0.82, 0.99)), ["0.85", "0.90", "0.95"]);
        assert_eq!(labels(Axis::between(0.895, 0.946)), ["0.90", "0.91", "0.92", "0.93", "0.94"]);
        assert_eq!(labels(Axis::between(0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(Axis::between(-0.9, 0.8)), ["-0.5", "0.0", "0.5"]);
        assert_eq!(labels(Axis::between(0.0, 10_000.0)), ["0", "2k", "4k", "6k", "8k", "10k"]);
        let log = |low, high| labels(Axis::over(Scale::Log, [low, high], 0.0).unwrap());
        assert_eq!(log(9.0, 1200.0), ["10", "100", "1000"]);
        assert_eq!(log(9.0, 700.0), ["10", "30", "100", "300"]);
        assert_eq!(log(1e-5, 1e-3), ["1e-5", "1e-4", "1e-3"]);
        assert_eq!(log(40.0, 60.0), ["40", "50", "60"]);
        assert_eq!(
            log(50.0, 52.0),
            ["50.0", "50.5", "51.0", "51.5", "52.0"].map(|l| l.trim_end_matches(".0"))
        );
    }

    #[test]
    fn one_value_has_room_around_it() {
        for scale in [Scale::Linear, Scale::Log] {
            let axis = Axis::over(scale, [5.0], 0.05).unwrap();
            assert!((axis.place(5.0) - 0.5).abs() < 1e-9);
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        assert_eq!(Axis::over(Scale::Log, [0.0, -1.0, f64::NAN], 0.0), None);
        assert_eq!(Axis::over(Scale::Linear, [f64::INFINITY], 0.0), None);
        let axis = Axis::over(Scale::Log, [0.0, 1.0, 100.0], 0.0).unwrap();
        assert!(axis.place(1.0).abs() < 1e-12 && (axis.place(100.0) - 1.0).abs() < 1e-12);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn ticks_lie_inside_and_differ(low in -50.0f64..50.0, length in 1e-4f64..1e4, log: bool) {
            let scale = if log { Scale::Log } else { Scale::Linear };
            let low = if log { 10f64.powf(low / 10.0) } else { low };
            let axis = Axis::over(scale, [low, low + length], 0.05).unwrap();
            let ticks = axis.ticks(6);
            prop_assert!(ticks.len() >= 2 && ticks.len() <= 13, "{:?}", ticks);
            for (value, _) in &ticks {
                prop_assert!((-1e-6..=1.0 + 1e-6).contains(&axis.place(*value)), "{:?}", ticks);
            }
        }
    }
}
