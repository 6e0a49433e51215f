//! The keys that KV refused alone while it accepted nothing else of their attempt. The cause is
//! unknown. Pure.

use std::collections::BTreeMap;

use taskpipeline_contract::TaskId;
use tokio::time::Instant;

/// The most suspects before those that do not wait any more are forgotten.
const MOST: usize = 1_000;

#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// How often KV refused the key.
    times: usize,
    /// The end of its rest, or `None` if the rest cannot be ended early.
    until: Option<Instant>,
    /// Whether its rest was ended because KV accepted tasks again.
    had_its_turn: bool,
}

/// The keys that KV refused alone for an unknown cause.
#[derive(Debug, Default)]
pub(super) struct Suspects(BTreeMap<TaskId, Suspect>);

impl Suspects {
    /// How often KV refused a key.
    ///
    /// If there are too many suspects, forgets those for which `waits` returns false.
    pub(super) fn times(&mut self, id: &TaskId, waits: impl Fn(&TaskId) -> bool) -> usize {
        if self.0.len() >= MOST {
            self.0.retain(|id, _| waits(id));
        }
        self.0.get(id).map_or(0, |suspect| suspect.times)
    }

    /// Counts a refusal of a key. `until`: the end of its rest, if the rest may be ended early.
    pub(super) fn refused(&mut self, id: &TaskId, until: Option<Instant>) {
        let suspect = self.0.entry(id.clone()).or_insert(Suspect { times: 0, until, had_its_turn: false });
        (suspect.times, suspect.until) = (suspect.times.saturating_add(1), until);
    }

    /// Calls `rouse` for each resting key, because KV accepts tasks again; once for each key.
    ///
    /// A key that is at fault itself would otherwise close the gate again after every write of
    /// others.
    pub(super) fn rouse(&mut self, mut rouse: impl FnMut(&TaskId, Instant)) {
        for (id, suspect) in self.0.iter_mut().filter(|(_, suspect)| !suspect.had_its_turn) {
            if let Some(until) = suspect.until.take() {
                suspect.had_its_turn = true;
                rouse(id, until);
            }
        }
    }

    /// Calls `rouse` for at most `most` resting keys, to share a request with others.
    pub(super) fn rouse_some(&mut self, most: usize, mut rouse: impl FnMut(&TaskId, Instant)) {
        let resting = self.0.iter_mut().filter_map(|(id, suspect)| Some((id, suspect.until.take()?)));
        resting.take(most).for_each(|(id, until)| rouse(id, until));
    }

    /// Removes these keys. Returns whether one of them was a suspect.
    pub(super) fn acquit(&mut self, ids: &[TaskId]) -> bool {
        let before = self.0.len();
        if before > 0 {
            for id in ids {
                self.0.remove(id);
            }
        }
        self.0.len() < before
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The text for health, or `None` without suspects.
    pub(super) fn describe(&self) -> Option<String> {
        let id = self.0.keys().next()?;
        let more = match self.0.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        Some(format!(
            "KV refuses tasks:{id}{more} and accepted nothing that was sent with it; it waits and is retried together with \
             other tasks"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspect_is_roused_once_each_time_it_is_refused_and_told_of_until_it_is_acquitted() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        let (a, b) = (TaskId::new("a").unwrap(), TaskId::new("b").unwrap());
        assert_eq!((suspects.describe(), suspects.acquit(std::slice::from_ref(&a))), (None, false));
        suspects.refused(&a, Some(now));
        suspects.refused(&b, None);
        let mut roused = Vec::new();
        suspects.rouse_some(9, |id, until| roused.push((id.clone(), until)));
        suspects.rouse_some(9, |_, _| panic!("again"));
        assert_eq!(roused, [(a.clone(), now)]);
        suspects.refused(&a, Some(now));
        assert_eq!(suspects.times(&a, |_| true), 2);
        assert!(suspects.describe().unwrap().contains("and 1 more"));
        assert!(suspects.acquit(&[a, b]));
        assert_eq!(suspects.describe(), None);
    }

    #[test]
    fn that_kv_takes_tasks_again_rouses_each_once_and_a_write_of_others_so_many_each_time() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        let ids = ["a", "b", "c"].map(|id| TaskId::new(id).unwrap());
        for round in 0..3 {
            ids.iter().for_each(|id| suspects.refused(id, Some(now)));
            let (mut again, mut beside) = (0, 0);
            suspects.rouse(|_, _| again += 1);
            assert_eq!(again, if round == 0 { 3 } else { 0 });
            suspects.rouse_some(2, |_, _| beside += 1);
            assert_eq!(beside, if round == 0 { 0 } else { 2 });
        }
        suspects.acquit(&ids);
        suspects.refused(&ids[0], Some(now));
        let mut again = 0;
        suspects.rouse(|_, _| again += 1);
        assert_eq!(again, 1, "one that was written meanwhile is as any other");
    }

    #[test]
    fn there_are_not_ever_more_of_them() {
        let mut suspects = Suspects::default();
        for n in 0..MOST * 3 {
            let id = TaskId::new(n.to_string()).unwrap();
            assert_eq!(suspects.times(&id, |_| false), 0);
            suspects.refused(&id, None);
        }
        assert!(suspects.0.len() <= MOST, "{}", suspects.0.len());
    }
}
