//! The keys that KV refused alone while it accepted nothing else of their attempt: whose fault that was is open. Pure.

use std::collections::HashMap;

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
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Suspects(HashMap<TaskId, Suspect>);

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
        let suspect = self.0.entry(id.clone()).or_insert(Suspect { times: 0, until });
        *suspect = Suspect { times: suspect.times.saturating_add(1), until };
    }

    /// Calls for each that rests and may be roused, and does not do so again until it is refused again.
    pub(super) fn rouse(&mut self, mut rouse: impl FnMut(&TaskId, Instant)) {
        for (id, suspect) in &mut self.0 {
            if let Some(until) = suspect.until.take() {
                rouse(id, until);
            }
        }
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
        suspects.rouse(|id, until| roused.push((id.clone(), until)));
        suspects.rouse(|_, _| panic!("again"));
        assert_eq!(roused, [(a.clone(), now)]);
        suspects.refused(&a, Some(now));
        assert_eq!(suspects.times(&a, |_| true), 2);
        assert!(suspects.describe().unwrap().contains("and 1 more"));
        assert!(suspects.acquit(&[a, b]));
        assert_eq!(suspects.describe(), None);
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
