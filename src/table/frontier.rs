//! The trials that no other trial beats in sparsity and fidelity at once.
//!
//! A trial is on a frontier when no other finished trial has an L0 at most as large and a fidelity at least
//! as large, one of them strictly. Trials that did not finish or lack a number take no part.

use super::{RunData, TrialRow};

/// Fidelity metrics for which a frontier against L0 is drawn.
pub const FRONTIER_METRICS: [&str; 4] = ["ce_loss_score", "explained_variance", "recovered_share", "mmcs"];

/// The frontier of one fidelity metric against L0.
#[derive(Debug, Clone, PartialEq)]
pub struct Frontier {
    /// The fidelity metric, larger is better.
    pub metric: &'static str,
    /// Its trials by rising L0.
    pub points: Vec<FrontierPoint>,
}

/// A trial on a frontier.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrontierPoint {
    /// Its place in [`RunData::trials`].
    pub row: usize,
    /// Mean active latents per token.
    pub l0: f64,
    /// Its fidelity.
    pub fidelity: f64,
}

impl Frontier {
    /// The fidelity of the frontier at an L0: between two of its trials by log L0, beyond its ends that of
    /// the end. `None` without trials or where log L0 does not exist.
    pub fn at(&self, l0: f64) -> Option<f64> {
        let place = |l0: f64| (l0 > 0.0).then(|| l0.ln());
        let x = place(l0)?;
        let right = self.points.partition_point(|point| point.l0 < l0);
        let (Some(after), true) = (self.points.get(right), right > 0) else {
            let end = if right == 0 { self.points.first() } else { self.points.last() };
            return end.map(|point| point.fidelity);
        };
        let before = &self.points[right - 1];
        let (Some(from), Some(to)) = (place(before.l0), place(after.l0)) else { return Some(after.fidelity) };
        let part = if to > from { (x - from) / (to - from) } else { 1.0 };
        Some(before.fidelity + part * (after.fidelity - before.fidelity))
    }
}

/// The frontiers of a run, one for each of [`FRONTIER_METRICS`]; without points where no trial has the metric.
pub fn frontiers(run: &RunData) -> Vec<Frontier> {
    FRONTIER_METRICS.into_iter().map(|metric| frontier(run, metric)).collect()
}

fn frontier(run: &RunData, metric: &'static str) -> Frontier {
    let pair =
        |trial: &TrialRow| trial.metric("l0").zip(trial.metric(metric)).unwrap_or((f64::NAN, f64::NAN));
    let pairs: Vec<(f64, f64)> = run.trials.iter().map(pair).collect();
    let point = |row: usize| FrontierPoint { row, l0: pairs[row].0, fidelity: pairs[row].1 };
    Frontier { metric, points: pareto(&pairs).into_iter().map(point).collect() }
}

/// Indices of the points (cost, gain) that no other point dominates, by rising cost, then index; equal
/// points are all kept. Points that are not finite are left out. O(n log n).
pub fn pareto(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..points.len()).filter(|&i| points[i].0.is_finite() && points[i].1.is_finite()).collect();
    // Adding zero turns -0 into 0, so that total_cmp agrees with `<`.
    let key = |i: usize| (points[i].0 + 0.0, points[i].1 + 0.0);
    order.sort_by(|&a, &b| {
        let ((cost_a, gain_a), (cost_b, gain_b)) = (key(a), key(b));
        cost_a.total_cmp(&cost_b).then(gain_b.total_cmp(&gain_a)).then(a.cmp(&b))
    });
    let mut kept: Vec<usize> = Vec::new();
    for i in order {
        let enters = match kept.last() {
            None => true,
            // Whatever comes later costs at least as much, so it must gain more, or be the same point.
            Some(&last) => key(i).1 > key(last).1 || key(i) == key(last),
        };
        if enters {
            kept.push(i);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Outcome, samples};
    use proptest::prelude::*;

    fn dominates(a: (f64, f64), b: (f64, f64)) -> bool {
        a.0 <= b.0 && a.1 >= b.1 && (a.0 < b.0 || a.1 > b.1)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Coarse numbers, so that ties are common; every seventh point is not a number.
        #[test]
        fn exactly_the_undominated_points_are_kept(raw in prop::collection::vec((0u8..12, 0u8..12, 0u8..7), 0..60)) {
            let points: Vec<(f64, f64)> = raw
                .iter()
                .map(|&(x, y, bad)| (f64::from(x), if bad == 0 { f64::NAN } else { f64::from(y) / 4.0 }))
                .collect();
            let kept = pareto(&points);
            for (i, &point) in points.iter().enumerate() {
                let beaten = points.iter().any(|&other| dominates(other, point));
                let expected = !point.1.is_nan() && !beaten;
                prop_assert_eq!(kept.contains(&i), expected, "point {} {:?}", i, point);
            }
            for pair in kept.windows(2) {
                prop_assert!(points[pair[0]].0 <= points[pair[1]].0);
            }
        }
    }

    #[test]
    fn between_trials_the_frontier_is_interpolated() {
        let point = |l0, fidelity| FrontierPoint { row: 0, l0, fidelity };
        let points = vec![point(1.0, 0.5), point(100.0, 0.9)];
        let frontier = Frontier { metric: "ce_loss_score", points };
        for (l0, expected) in [(0.5, 0.5), (1.0, 0.5), (10.0, 0.7), (100.0, 0.9), (500.0, 0.9)] {
            assert!((frontier.at(l0).unwrap() - expected).abs() < 1e-12, "{l0}");
        }
        assert_eq!(frontier.at(0.0), None);
        assert_eq!(Frontier { metric: "ce_loss_score", points: Vec::new() }.at(1.0), None);
    }

    #[test]
    fn signed_zeros_are_equal() {
        assert_eq!(pareto(&[(0.0, 1.0), (-0.0, 1.0), (-0.0, 0.5)]), [0, 1]);
    }

    #[test]
    fn infinite_and_missing_numbers_stay_out() {
        let points = [(f64::NEG_INFINITY, 1.0), (3.0, f64::INFINITY), (f64::NAN, 2.0), (2.0, 0.5)];
        assert_eq!(pareto(&points), [3]);
    }

    #[test]
    fn only_finished_trials_are_on_a_frontier() {
        let mut run = samples::grid_run();
        let all = frontiers(&run);
        assert_eq!(
            all.iter().filter(|frontier| !frontier.points.is_empty()).count(),
            2,
            "as the sample has metrics"
        );
        for frontier in all {
            for point in &frontier.points {
                assert_eq!(run.trials[point.row].outcome, Outcome::Done);
            }
        }
        for trial in &mut run.trials {
            trial.metrics.remove("ce_loss_score");
        }
        let both = frontiers(&run);
        assert!(both[0].points.is_empty());
        assert!(!both[1].points.is_empty());
    }
}
