//! Medians, percentiles and rates of numbers. Pure.

/// The middle value, or the mean of the two in the middle; `None` if the list is empty.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = if sorted.len().is_multiple_of(2) { sorted[sorted.len() / 2 - 1] } else { upper };
    Some(f64::midpoint(lower, upper))
}

/// The smallest value that this share (0.0 to 1.0) of the values does not exceed; `None` if the list is empty.
pub(crate) fn percentile(values: &[f64], share: f64) -> Option<f64> {
    let sorted = sorted(values);
    // The value is a number of measurements, far below the limits of a float or a usize.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to the length")]
    let rank = (share * count(sorted.len())).ceil().max(1.0) as usize;
    sorted.get(rank.min(sorted.len()).checked_sub(1)?).copied()
}

/// The smallest and the largest value; `None` if the list is empty.
pub(crate) fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    Some((*sorted.first()?, *sorted.last()?))
}

/// The growth a second of a count between two times, by the points `(seconds, count)` next to them; `None` if these
/// are not two.
pub(crate) fn rate_between(points: &[[f64; 2]], from: f64, to: f64) -> Option<f64> {
    let begin = points.iter().rev().find(|point| point[0] <= from).or_else(|| points.first())?;
    let end = points.iter().find(|point| point[0] >= to).or_else(|| points.last())?;
    (end[0] > begin[0]).then(|| (end[1] - begin[1]) / (end[0] - begin[0]))
}

/// The growth a second of a count while it grew from this share of its end to that one.
pub(crate) fn rate_within(points: &[[f64; 2]], from: f64, to: f64) -> Option<f64> {
    let all = points.last()?[1];
    let begin = points.iter().find(|point| point[1] >= from * all)?;
    let end = points.iter().find(|point| point[1] >= to * all)?;
    (end[0] > begin[0]).then(|| (end[1] - begin[1]) / (end[0] - begin[0]))
}

/// Converts a count to a float; counts here are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(crate) fn count(value: impl TryInto<u64>) -> f64 {
    value.try_into().unwrap_or_default() as f64
}

/// Divides one number by another; 0 if the other is 0.
pub(crate) fn ratio(of: f64, to: f64) -> f64 {
    if to == 0.0 { 0.0 } else { of / to }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=1_000).map(f64::from).collect();
        let at = |share| percentile(&values, share);
        assert_eq!(
            (at(0.5), at(0.99), at(0.999), at(1.0)),
            (Some(500.0), Some(990.0), Some(999.0), Some(1_000.0))
        );
        assert_eq!((percentile(&[7.0], 0.0), percentile(&[], 0.5)), (Some(7.0), None));
    }

    #[test]
    fn rates_of_a_count_that_grows() {
        let points = [[0.0, 0.0], [1.0, 0.0], [2.0, 100.0], [3.0, 200.0], [4.0, 300.0], [10.0, 300.0]];
        assert_eq!(rate_between(&points, 1.0, 4.0), Some(100.0));
        assert_eq!(rate_between(&points, 1.5, 3.5), Some(100.0));
        assert_eq!(rate_between(&points[..1], 0.0, 1.0), None);
        assert_eq!(rate_within(&points, 0.3, 1.0), Some(100.0));
    }
}
