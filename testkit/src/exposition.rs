//! Parses the text format of Prometheus, as the programs and the API server return it.

use std::collections::BTreeMap;

/// A line of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// Returns a label; empty if it is missing, as in Prometheus.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Parses all samples of a text. Labels must have no escapes or commas, as all labels here.
pub fn samples(text: &str) -> impl Iterator<Item = Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split(',').filter_map(|label| {
            let (name, value) = label.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('"').to_owned()))
        });
        Some(Sample { name: name.to_owned(), labels: labels.collect(), value: value.parse().ok()? })
    })
}

/// Sums all samples of a metric, or returns one series if the name has labels; 0 if none matches.
#[must_use]
pub fn sum(text: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let found = series == name || series.split('{').next()? == name;
        found.then(|| value.parse::<f64>().ok()).flatten()
    };
    text.lines().filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_apart_and_comments_are_nothing() {
        let text =
            "# HELP a_total What.\na_total{method=\"get\",kind=\"x\"} 2\na_total{method=\"put\"} 3\nb 1.5\n";
        let gets: Vec<_> = samples(text).filter(|sample| sample.label("method") == "get").collect();
        assert_eq!((gets.len(), gets[0].value, gets[0].label("kind")), (1, 2.0, "x"));
        assert_eq!(sum(text, "a_total{method=\"put\"}"), 3.0);
        assert_eq!((sum(text, "a_total"), sum(text, "b"), sum(text, "none")), (5.0, 1.5, 0.0));
    }
}
