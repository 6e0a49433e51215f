//! Comparisons of figures of several systems: multiples of the peer's, and shares of the floor. Pure.

use crate::measurement::Scenario;
use crate::stats::ratio;
use crate::system::Kind;

use super::rows::Row;
use super::table::number;

/// Returns the sentences for one scenario.
pub(super) fn sentences(scenario: Scenario, rows: &[Row]) -> Vec<String> {
    let rows: Vec<_> = rows.iter().filter(|row| row.scenario == scenario).collect();
    match scenario {
        Scenario::Limit => times_the_peer(&rows, "events/s that last"),
        Scenario::Nolimit => {
            let mut all = of_the_floor(&rows, Kind::Floor, &[Kind::Durable], "the floor");
            all.extend(of_the_floor(&rows, Kind::GuardedFloor, &[Kind::Durable], "the guarded floor"));
            all.extend(of_the_floor(&rows, Kind::PeerFloor, &[Kind::Peer], "its floor"));
            all.extend(times_the_peer(&rows, "events/s"));
            all
        }
        Scenario::LedgerSize => flatness(&rows),
        _ => Vec::new(),
    }
}

/// Compares each of our rows with the peer's best row of the same mix.
fn times_the_peer(rows: &[&Row], figure: &str) -> Vec<String> {
    let ours = rows.iter().filter(|row| matches!(row.system.kind, Kind::Durable | Kind::Core));
    let sentence = |row: &&Row| {
        let peers =
            rows.iter().filter(|it| it.system.kind == Kind::Peer && it.knobs.deletes == row.knobs.deletes);
        let best = peers.filter_map(|it| it.median(figure)).fold(0.0, f64::max);
        let times = ratio(row.median(figure)?, best);
        let decimals = if times < 100.0 { 1 } else { 0 };
        (times > 0.0).then(|| format!("{}: {} times the peer's best.", row.title(), number(times, decimals)))
    };
    ours.filter_map(sentence).collect()
}

fn of_the_floor(rows: &[&Row], floor: Kind, of: &[Kind], name: &str) -> Vec<String> {
    let figure = "events/s";
    let Some(least) = rows.iter().find(|row| row.system.kind == floor).and_then(|row| row.median(figure))
    else {
        return Vec::new();
    };
    let sentence = |row: &&Row| {
        let share = ratio(row.median(figure)?, least) * 100.0;
        Some(format!("{}: {share:.0} % of {name}.", row.title()))
    };
    rows.iter().filter(|row| of.contains(&row.system.kind)).filter_map(sentence).collect()
}

/// Returns by how much the highest cost exceeds the lowest.
fn flatness(rows: &[&Row]) -> Vec<String> {
    let sentence = |figure: &str| {
        let values: Vec<_> = rows.iter().filter_map(|row| row.median(figure)).collect();
        let (least, most) = crate::stats::spread(&values).filter(|_| values.len() > 1)?;
        Some(format!("{figure}: the most is {:.0} % above the least.", (ratio(most, least) - 1.0) * 100.0))
    };
    ["CPU µs per event, replicas", "µs per event"].into_iter().filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rows::samples::measurement;
    use super::super::rows::summary;
    use super::*;

    #[test]
    fn ratios_to_the_peer_and_to_the_floors() {
        let rates = [
            (Kind::Floor, 40_000.0),
            (Kind::Durable, 20_000.0),
            (Kind::PeerFloor, 1_000.0),
            (Kind::Peer, 800.0),
        ];
        let all = rates.map(|(kind, rate)| measurement(Scenario::Nolimit, kind, 1, &[("events/s", rate)]));
        let sentences = sentences(Scenario::Nolimit, &summary(&all));
        assert_eq!(
            sentences,
            [
                "ours, Durable, 1 replica: 50 % of the floor.",
                "peer, 1 replica: 80 % of its floor.",
                "ours, Durable, 1 replica: 25.0 times the peer's best."
            ]
        );
    }
}
