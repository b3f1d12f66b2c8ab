//! How many of the true features trials recovered, against how many latents they use at once; for data whose
//! features are known. Read [`RecoverySeries`] first.

use super::{
    RunData, TrialRow,
    settings::is_sparsity_key,
    summary::{Spread, setting_groups, spread},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Shares that differ by no more than this, or than seeds of one choice do, count as equal.
const LEAST_TIE: f64 = 0.01;
/// An L0 within this factor of the true one is the true one.
const SAME_L0: f64 = 1.05;

/// What one architecture recovered at which L0.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoverySeries {
    /// Name of the architecture.
    pub architecture: String,
    /// True features active in a row, on average.
    pub true_l0: f64,
    /// For every choice of sparsity the one that recovered most of those made of the other settings; by rising L0.
    pub points: Vec<RecoveryPoint>,
    /// The other choices.
    pub others: Vec<RecoveryPoint>,
    /// Standard deviation of `recovered_share` between seeds of one choice, pooled over choices; nothing without
    /// repeats.
    pub noise: Option<f64>,
}

/// One choice of settings; means over its seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecoveryPoint {
    /// Active latents per row.
    pub l0: f64,
    /// Metric `recovered_share`.
    pub share: f64,
    /// Metric `mmcs`; not a number where trials lack it.
    pub mmcs: f64,
}

/// Where a series recovers most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RecoveryPeak {
    /// The point that recovered most; of equal ones that of larger MMCS.
    pub best: RecoveryPoint,
    /// Shares within this of the best count as equal to it: one percentage point or, where that is more, the standard
    /// deviation between seeds.
    pub tie: f64,
    /// Least and greatest L0 of the points that count as equal to the best.
    pub from: f64,
    /// See `from`.
    pub to: f64,
    /// How these lie to the true L0.
    pub place: PeakPlace,
    /// Whether one of them is the first or the last point, so that even more may be recovered further out.
    pub at_end: bool,
}

/// Where the true L0 lies against the range in which recovery is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeakPlace {
    /// Within it.
    AtTruth,
    /// All of it lies below the true L0.
    Below,
    /// All of it lies above the true L0.
    Above,
}

impl RecoverySeries {
    /// Where it recovers most; `None` without points.
    pub fn peak(&self) -> Option<RecoveryPeak> {
        let better = |a: &&RecoveryPoint, b: &&RecoveryPoint| {
            a.share.total_cmp(&b.share).then(a.mmcs.total_cmp(&b.mmcs)).then(b.l0.total_cmp(&a.l0))
        };
        let best = *self.points.iter().max_by(better)?;
        let tie = self.noise.unwrap_or(0.0).max(LEAST_TIE);
        let is_tie = |point: &RecoveryPoint| point.share >= best.share - tie - 1e-12;
        let first = self.points.iter().position(is_tie)?;
        let last = self.points.iter().rposition(is_tie)?;
        let (from, to) = (self.points[first].l0, self.points[last].l0);
        let place = if to * SAME_L0 < self.true_l0 {
            PeakPlace::Below
        } else if from > self.true_l0 * SAME_L0 {
            PeakPlace::Above
        } else {
            PeakPlace::AtTruth
        };
        Some(RecoveryPeak { best, tie, from, to, place, at_end: first == 0 || last + 1 == self.points.len() })
    }
}

/// What is gathered of one architecture.
#[derive(Debug, Default)]
struct Gathered {
    /// By sparsity.
    choices: BTreeMap<String, Vec<RecoveryPoint>>,
    /// Squared deviations of shares from their choice's mean, and degrees of freedom.
    squares: f64,
    freedom: usize,
}

/// The series of a run, by architecture, then true L0; none where no finished trial knows its true features.
pub fn recovery_series(run: &RunData) -> Vec<RecoverySeries> {
    let mut series: BTreeMap<(String, u64), Gathered> = BTreeMap::new();
    for trials in setting_groups(run) {
        let Some((true_l0, point)) = point(&trials) else { continue };
        let settings = &trials[0].settings;
        let architecture = settings.get("sae.architecture").and_then(Value::as_str).unwrap_or("SAE");
        let sparsity: Vec<&Value> = run
            .axis_keys()
            .filter(|key| is_sparsity_key(key))
            .map(|key| settings.get(key).unwrap_or(&Value::Null))
            .collect();
        let gathered = series.entry((architecture.to_owned(), true_l0.to_bits())).or_default();
        gathered.choices.entry(format!("{sparsity:?}")).or_default().push(point);
        if let Some(Spread { n, sd: Some(sd), .. }) = spread(trials, "recovered_share") {
            gathered.squares += sd * sd * (n - 1) as f64;
            gathered.freedom += n - 1;
        }
    }
    series
        .into_iter()
        .map(|((architecture, true_l0), gathered)| gathered.series(architecture, f64::from_bits(true_l0)))
        .collect()
}

impl Gathered {
    fn series(self, architecture: String, true_l0: f64) -> RecoverySeries {
        let (mut points, mut others) = (Vec::new(), Vec::new());
        for mut choice in self.choices.into_values() {
            choice.sort_by(|a, b| b.share.total_cmp(&a.share).then(b.mmcs.total_cmp(&a.mmcs)));
            points.push(choice.remove(0));
            others.append(&mut choice);
        }
        for points in [&mut points, &mut others] {
            points.sort_by(|a, b| a.l0.total_cmp(&b.l0));
        }
        let noise = (self.freedom > 0).then(|| (self.squares / self.freedom as f64).sqrt());
        RecoverySeries { architecture, true_l0, points, others, noise }
    }
}

/// True L0 and means of one choice's finished trials.
fn point(trials: &[&TrialRow]) -> Option<(f64, RecoveryPoint)> {
    let mean = |metric| spread(trials.iter().copied(), metric).map(|spread| spread.mean);
    let point = RecoveryPoint {
        l0: mean("l0").filter(|l0| *l0 > 0.0)?,
        share: mean("recovered_share")?,
        mmcs: mean("mmcs").unwrap_or(f64::NAN),
    };
    Some((mean("true_l0")?, point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::samples;
    use proptest::prelude::*;

    fn series(points: &[(f64, f64)]) -> RecoverySeries {
        let points = points.iter().map(|&(l0, share)| RecoveryPoint { l0, share, mmcs: share }).collect();
        RecoverySeries {
            architecture: "topk".to_owned(),
            true_l0: 8.0,
            points,
            others: Vec::new(),
            noise: None,
        }
    }

    fn place(points: &[(f64, f64)]) -> (f64, f64, PeakPlace, bool) {
        let peak = series(points).peak().unwrap();
        (peak.from, peak.to, peak.place, peak.at_end)
    }

    #[test]
    fn the_peak_is_said_to_be_where_it_is() {
        use PeakPlace::{Above, AtTruth, Below};
        assert_eq!(place(&[(4.0, 0.5), (8.1, 0.9), (16.0, 0.4)]), (8.1, 8.1, AtTruth, false));
        assert_eq!(place(&[(4.0, 0.9), (8.1, 0.895), (16.0, 0.4)]), (4.0, 8.1, AtTruth, true));
        assert_eq!(place(&[(2.0, 0.5), (4.0, 0.9), (8.0, 0.8)]), (4.0, 4.0, Below, false));
        assert_eq!(place(&[(4.0, 0.5), (8.0, 0.8), (12.0, 0.9), (16.0, 0.9)]), (12.0, 16.0, Above, true));
        // Equally good on both sides, and worse between: the range is what is good.
        assert_eq!(place(&[(6.0, 0.9), (8.0, 0.2), (12.0, 0.9), (16.0, 0.1)]), (6.0, 12.0, AtTruth, true));
        assert_eq!(series(&[]).peak(), None);
        // What lies within the spread between seeds is no difference.
        let noisy = RecoverySeries { noise: Some(0.05), ..series(&[(6.0, 0.93), (8.0, 0.89), (12.0, 0.5)]) };
        let peak = noisy.peak().unwrap();
        assert_eq!((peak.tie, peak.from, peak.to, peak.place), (0.05, 6.0, 8.0, AtTruth));
    }

    #[test]
    fn seeds_are_averaged_and_the_best_learning_rate_is_taken() {
        let mut run = samples::toy_run();
        let all = recovery_series(&run);
        let names: Vec<&str> = all.iter().map(|series| series.architecture.as_str()).collect();
        assert_eq!(names, ["standard", "topk"]);
        for series in &all {
            assert_eq!(series.true_l0, 8.0);
            assert_eq!((series.points.len(), series.others.len()), (5, 5));
            assert!(series.points.is_sorted_by(|a, b| a.l0 < b.l0));
            let best = |points: &[RecoveryPoint]| points.iter().map(|p| p.share).fold(0.0, f64::max);
            assert!(best(&series.points) > best(&series.others));
            // Two seeds, 0.002 apart: their standard deviation is that over the root of 2.
            assert!((series.noise.unwrap() - 0.002 / 2.0_f64.sqrt()).abs() < 1e-4, "{:?}", series.noise);
        }
        for trial in &mut run.trials {
            trial.metrics.remove("true_l0");
        }
        assert_eq!(recovery_series(&run), []);
        assert_eq!(recovery_series(&samples::grid_run()), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_point_is_better_than_the_peak(shares in proptest::collection::vec(0.0_f64..1.0, 1..12)) {
            let points: Vec<(f64, f64)> =
                shares.iter().enumerate().map(|(i, share)| (1.5_f64.powi(i as i32), *share)).collect();
            let series = series(&points);
            let peak = series.peak().unwrap();
            prop_assert!(series.points.iter().all(|point| point.share <= peak.best.share));
            prop_assert!(peak.from <= peak.best.l0 && peak.best.l0 <= peak.to);
            let outside = |point: &&RecoveryPoint| point.l0 < peak.from || point.l0 > peak.to;
            for point in series.points.iter().filter(outside) {
                prop_assert!(point.share < peak.best.share - LEAST_TIE);
            }
        }
    }
}
