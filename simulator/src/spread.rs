//! Exact percentiles of numbers with few different values. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// The percentiles of some numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The minimum.
    pub min: usize,
    /// The median.
    pub p50: usize,
    /// The 90th percentile.
    pub p90: usize,
    /// The 99th percentile.
    pub p99: usize,
    /// The maximum.
    pub max: usize,
}

/// The count of each number.
#[derive(Debug, Default)]
pub(crate) struct Counts(BTreeMap<usize, u64>);

impl Counts {
    pub(crate) fn add(&mut self, number: usize) {
        *self.0.entry(number).or_default() += 1;
    }

    pub(crate) fn spread(&self) -> Spread {
        let total: u64 = self.0.values().sum();
        let percentile = |percent: u64| {
            let rank = (total * percent).div_ceil(100);
            let mut so_far = 0;
            let reached = |(_, count): &(&usize, &u64)| {
                so_far += **count;
                so_far >= rank
            };
            self.0.iter().find(reached).map_or(0, |(number, _)| *number)
        };
        let [min, max] = [self.0.keys().next(), self.0.keys().next_back()].map(|end| *end.unwrap_or(&0));
        Spread { min, p50: percentile(50), p90: percentile(90), p99: percentile(99), max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_numbers() {
        let mut counts = Counts::default();
        assert_eq!(counts.spread(), Spread::default());
        counts.add(7);
        assert_eq!(counts.spread(), Spread { min: 7, p50: 7, p90: 7, p99: 7, max: 7 });
        (1..=1_000).for_each(|number| counts.add(number));
        counts.add(10_000);
        let Spread { min, p50, p90, p99, max } = counts.spread();
        assert_eq!((min, p50, p90, p99, max), (1, 500, 901, 991, 10_000));
    }
}
