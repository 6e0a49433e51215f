//! The rules that are set, and which of them befalls a request. Pure: the caller brings the clock.
//!
//! At most one rule befalls a request: the first one set that matches, at the earliest place.

use std::time::Duration;

use tokio::time::Instant;

use crate::call::Call;
use crate::fault::{Place, Rule};
use crate::operation::Operation;

#[derive(Debug, Default)]
pub(crate) struct Active {
    rules: Vec<Standing>,
}

#[derive(Debug)]
struct Standing {
    /// Its `times` are what is left of them.
    rule: Rule,
    set: Instant,
}

impl Standing {
    /// How much of its time is left; nothing where the rule is over.
    fn left(&self, now: Instant) -> Option<Option<Duration>> {
        let lasting = match self.rule.lasting {
            None => None,
            Some(lasting) => {
                Some(lasting.checked_sub(now.duration_since(self.set)).filter(|left| !left.is_zero())?)
            }
        };
        (self.rule.times != Some(0)).then_some(lasting)
    }
}

impl Active {
    pub(crate) fn add(&mut self, rule: Rule, now: Instant) {
        self.rules.push(Standing { rule, set: now });
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Takes back the rules with this name.
    pub(crate) fn mend(&mut self, name: &str) {
        self.rules.retain(|standing| standing.rule.name() != name);
    }

    /// The rules that are not over, with the times and the time they have left.
    pub(crate) fn rules(&self, now: Instant) -> Vec<Rule> {
        let left = |standing: &Standing| {
            let mut rule = standing.rule.clone();
            rule.lasting = standing.left(now)?;
            Some(rule)
        };
        self.rules.iter().filter_map(left).collect()
    }

    /// The rule that befalls a request at this place; it has one time less for it.
    pub(crate) fn take(
        &mut self,
        place: Place,
        operation: Operation,
        contents: Option<&Call>,
        now: Instant,
    ) -> Option<Rule> {
        self.rules.retain(|standing| standing.left(now).is_some());
        let matches = |rule: &Rule| {
            rule.place() == place
                && rule.is_about(operation)
                && contents
                    .is_none_or(|call| rule.matches_contents(call.keys().map(|key| &**key), call.values()))
        };
        let rule = self.rules.iter_mut().map(|standing| &mut standing.rule).find(|rule| matches(rule))?;
        rule.times = rule.times.map(|times| times.saturating_sub(1));
        Some(rule.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, KeyMatch};
    use crate::operation::Scope;

    fn taken(active: &mut Active, operation: Operation, key: &str, now: Instant) -> Option<String> {
        let call = Call::Get(key.into());
        active.take(Place::Contents, operation, Some(&call), now).map(|rule| rule.name().to_owned())
    }

    #[test]
    fn the_first_that_matches_befalls_as_often_and_as_long_as_it_says() {
        let (mut active, start) = (Active::default(), Instant::now());
        active.add(Rule::new(Fault::RevokedToken), start);
        active.add(Rule::new(Fault::Hang).on(Scope::Writes), start);
        active.add(Rule::new(Fault::Hang).named("other").keys(KeyMatch::Is("b".to_owned())), start);
        active.add(Rule::new(Fault::Garbage).times(2), start);
        active.add(Rule::new(Fault::Html).lasting(Duration::from_secs(5)), start);
        let mut get =
            |key, seconds| taken(&mut active, Operation::Get, key, start + Duration::from_secs(seconds));
        assert_eq!(get("a", 0).as_deref(), Some("garbage"));
        assert_eq!(get("b", 0).as_deref(), Some("other"));
        assert_eq!(get("a", 0).as_deref(), Some("garbage"));
        assert_eq!(get("a", 4).as_deref(), Some("html"));
        assert_eq!(get("a", 5), None);
        assert!(active.take(Place::Token, Operation::Get, None, start).is_some());
    }

    #[test]
    fn what_is_over_is_gone_and_the_rest_says_what_is_left() {
        let (mut active, start) = (Active::default(), Instant::now());
        active.add(Rule::new(Fault::Hang).times(1), start);
        active.add(Rule::new(Fault::Html).times(3).lasting(Duration::from_secs(5)), start);
        taken(&mut active, Operation::Get, "a", start);
        taken(&mut active, Operation::Get, "a", start);
        let later = start + Duration::from_secs(2);
        let left = Rule::new(Fault::Html).times(2).lasting(Duration::from_secs(3));
        assert_eq!(active.rules(later), [left]);
        active.mend("html");
        assert!(active.rules(later).is_empty());
    }
}
