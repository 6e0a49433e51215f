//! A burst of updates of many tasks that the ledger does not know: only KV knows half of them, and nothing knows the
//! other half.
//!
//! Later events change some of these tasks again. Pure.

use std::time::Duration;

use taskpipeline_contract::EventKind;

use super::dice::Dice;
use super::events::{Burst, Mixture, SEEDED};

/// The tasks of one burst.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// The number of tasks that nothing knows, and of tasks that only KV knows.
    half: u64,
}

impl Crowd {
    /// Draws a size from hundreds to thousands.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        Self { half: dice.between(200, 1_000) }
    }

    /// The ids of the tasks that KV contains before the start.
    pub(crate) fn known_to_kv(&self) -> Vec<String> {
        (0..self.half).map(|n| format!("{SEEDED}crowd-{n}")).collect()
    }

    /// The ids of all tasks.
    pub(crate) fn ids(&self) -> Vec<String> {
        let unknown = (0..self.half).map(|n| format!("crowd-{n}"));
        self.known_to_kv().into_iter().zip(unknown).flat_map(|(known, unknown)| [known, unknown]).collect()
    }

    /// Inserts the burst at a random place. Creates, deletes and further updates of some of the tasks follow after
    /// the next bursts, or at once.
    pub(crate) fn put_into(&self, bursts: &mut Vec<Burst>, dice: &mut Dice, mixture: &mut Mixture) {
        let at = dice.index(bursts.len());
        let updates = self.ids().iter().map(|id| mixture.event_of(EventKind::Updated, id)).collect();
        let mut after = Vec::new();
        for id in self.ids() {
            let kind = match dice.below(6) {
                0 => EventKind::Created,
                1 => EventKind::Deleted,
                2 => EventKind::Updated,
                _ => continue,
            };
            after.push(mixture.event_of(kind, &id));
        }
        dice.shuffle(&mut after);
        let burst = |publications| Burst { publications, acked: true, pause: Duration::from_millis(100) };
        let later = (at + dice.index(8)).min(bursts.len());
        bursts.insert(later, burst(after));
        bursts.insert(at, burst(updates));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_updates_come_first_and_half_of_the_tasks_are_known_to_kv() {
        for seed in 0..50 {
            let mut dice = Dice::new(seed);
            let crowd = Crowd::draw(&mut dice);
            let (mut bursts, mut mixture) = (Vec::new(), Mixture::new(seed, Dice::new(1), 900, false));
            bursts.extend((0..3).map(|_| Burst {
                publications: Vec::new(),
                acked: false,
                pause: Duration::ZERO,
            }));
            crowd.put_into(&mut bursts, &mut dice, &mut mixture);
            let filled: Vec<_> = bursts.iter().filter(|burst| !burst.publications.is_empty()).collect();
            assert_eq!((bursts.len(), filled.len()), (5, 2));
            assert_eq!(filled[0].publications.len(), crowd.ids().len());
            assert!(filled[0].publications.iter().all(|it| it.kind == EventKind::Updated));
            assert!(filled[1].publications.len() > 100);
            assert_eq!(crowd.ids().len(), 2 * crowd.known_to_kv().len());
        }
    }
}
