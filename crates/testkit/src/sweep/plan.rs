use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Kind, Point, Ran};
use crate::faults::Call;

/// The number of points of each kind, counted in a run without a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Points {
    /// Calls of every kind.
    pub calls: u64,
    /// The writes among them.
    pub writes: u64,
    /// The reads among them.
    pub reads: u64,
}

impl From<&Ran> for Points {
    fn from(ran: &Ran) -> Self {
        Self { calls: ran.calls, writes: ran.writes, reads: ran.reads }
    }
}

/// The list of runs.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The number of possible points.
    pub of: Points,
    /// The points: one run each.
    pub points: Vec<Point>,
    /// The seed of the sample; `None` for all points.
    pub seed: Option<u64>,
}

impl Plan {
    /// Every point.
    #[must_use]
    pub fn all(of: Points, kinds: &[Kind]) -> Self {
        let points =
            kinds.iter().flat_map(|&kind| (1..=of.count(kind)).map(move |number| Point { number, kind }));
        Self { of, points: points.collect(), seed: None }
    }

    /// `sample` points of each kind, one random point in each equal part of the run.
    #[must_use]
    pub fn sample(of: Points, kinds: &[Kind], sample: u64, seed: u64) -> Self {
        let (mut points, mut rng) = (Vec::new(), SmallRng::seed_from_u64(seed));
        for &kind in kinds {
            let count = of.count(kind);
            let sample = sample.min(count);
            for part in 0..sample {
                let (from, to) = (part * count / sample, (part + 1) * count / sample);
                points.push(Point { number: rng.random_range(from + 1..=to), kind });
            }
        }
        Self { of, points, seed: Some(seed) }
    }

    /// A single run.
    #[must_use]
    pub fn one(of: Points, point: Point) -> Self {
        Self { of, points: vec![point], seed: None }
    }
}

impl Points {
    fn count(&self, kind: Kind) -> u64 {
        match kind.only() {
            Some(Call::Write) => self.writes,
            Some(Call::Read) => self.reads,
            _ => self.calls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Points = Points { calls: 100, writes: 30, reads: 20 };

    #[test]
    fn all_points_are_each_call_once_a_kind() {
        let plan = Plan::all(OF, Kind::all());
        assert_eq!(plan.points.len(), 9 * 100 + 2 * 30 + 2 * 20);
    }

    #[test]
    fn a_sample_is_spread_over_the_run_and_repeated_by_its_seed() {
        let plan = Plan::sample(OF, &[Kind::EioOnce, Kind::Torn], 10, 7);
        assert_eq!(plan.points, Plan::sample(OF, &[Kind::EioOnce, Kind::Torn], 10, 7).points);
        for (part, point) in plan.points[..10].iter().enumerate() {
            assert!((part as u64 * 10 + 1..=part as u64 * 10 + 10).contains(&point.number));
        }
        assert!(plan.points[10..].iter().all(|point| (1..=30).contains(&point.number)));
        assert_eq!(Plan::sample(OF, &[Kind::Short], 1000, 7).points.len(), 30);
    }
}
