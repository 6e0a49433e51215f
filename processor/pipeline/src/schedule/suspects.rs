//! The keys that KV refused alone while it accepted nothing else of their attempt: whose fault that was is open. Pure.

use std::collections::BTreeMap;

use taskpipeline_contract::TaskId;
use tokio::time::Instant;

/// How many may be remembered before those are forgotten that wait for nothing any more.
const MOST: usize = 1_000;

#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// How often it was refused.
    times: usize,
    /// It rests until then, and can be roused; nothing where it cannot.
    until: Option<Instant>,
    /// It has been roused because KV takes tasks again.
    had_its_turn: bool,
}

/// The keys that KV refused alone, and whose fault that was is open.
#[derive(Debug, Default)]
pub(super) struct Suspects(BTreeMap<TaskId, Suspect>);

impl Suspects {
    /// How often a key was refused. Makes room for it, where there are many: `waits` tells which others still wait.
    pub(super) fn times(&mut self, id: &TaskId, waits: impl Fn(&TaskId) -> bool) -> usize {
        if self.0.len() >= MOST {
            self.0.retain(|id, _| waits(id));
        }
        self.0.get(id).map_or(0, |suspect| suspect.times)
    }

    /// A key was refused once more. `until`: it rests until then, and may be roused.
    pub(super) fn refused(&mut self, id: &TaskId, until: Option<Instant>) {
        let suspect = self.0.entry(id.clone()).or_insert(Suspect { times: 0, until, had_its_turn: false });
        (suspect.times, suspect.until) = (suspect.times.saturating_add(1), until);
    }

    /// KV takes tasks again. Calls for each that rests, may be roused, and has not been for this reason before: if it is the
    /// task's fault, it would close the gate once more after every write of others.
    pub(super) fn rouse(&mut self, mut rouse: impl FnMut(&TaskId, Instant)) {
        for (id, suspect) in self.0.iter_mut().filter(|(_, suspect)| !suspect.had_its_turn) {
            if let Some(until) = suspect.until.take() {
                suspect.had_its_turn = true;
                rouse(id, until);
            }
        }
    }

    /// Others are written. Calls for at most so many that rest and may be roused, to share their request.
    pub(super) fn rouse_some(&mut self, most: usize, mut rouse: impl FnMut(&TaskId, Instant)) {
        let resting = self.0.iter_mut().filter_map(|(id, suspect)| Some((id, suspect.until.take()?)));
        resting.take(most).for_each(|(id, until)| rouse(id, until));
    }

    /// Nothing is open about these keys any more. Answers whether anything was.
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

    /// What to tell of them, if there are any.
    pub(super) fn describe(&self) -> Option<String> {
        let id = self.0.keys().next()?;
        let more = match self.0.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        Some(format!(
            "KV refuses tasks:{id}{more}, and accepted nothing that was sent with it: it waits, and is sent again together \
             with others"
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
