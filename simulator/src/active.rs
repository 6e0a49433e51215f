//! The active rules, and the choice of a rule for a request. Pure: the caller passes the time.
//!
//! At most one rule applies to a request: at the earliest place, the first rule that matches.

use std::time::Duration;

use tokio::time::Instant;

use crate::call::Call;
use crate::fault::{Place, Rule};
use crate::operation::Operation;

#[derive(Debug, Default)]
pub(crate) struct Active {
    rules: Vec<ActiveRule>,
}

#[derive(Debug)]
struct ActiveRule {
    /// The rule. Its `times` is the number that is left.
    rule: Rule,
    set: Instant,
}

impl ActiveRule {
    /// The time that is left: `None` if the rule has ended, `Some(None)` if the rule has no time limit.
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
        self.rules.push(ActiveRule { rule, set: now });
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Removes the rules with this name.
    pub(crate) fn remove(&mut self, name: &str) {
        self.rules.retain(|active| active.rule.name() != name);
    }

    /// The rules that have not ended, with the times and the time that are left.
    pub(crate) fn rules(&self, now: Instant) -> Vec<Rule> {
        let left = |active: &ActiveRule| {
            let mut rule = active.rule.clone();
            rule.lasting = active.left(now)?;
            Some(rule)
        };
        self.rules.iter().filter_map(left).collect()
    }

    /// Takes the rule that applies to a request at this place, and decreases its `times`.
    pub(crate) fn take(
        &mut self,
        place: Place,
        operation: Operation,
        contents: Option<&Call>,
        now: Instant,
    ) -> Option<Rule> {
        self.rules.retain(|active| active.left(now).is_some());
        let matches = |rule: &Rule| {
            rule.place() == place
                && rule.is_about(operation)
                && contents
                    .is_none_or(|call| rule.matches_contents(call.keys().map(|key| &**key), call.values()))
        };
        let rule = self.rules.iter_mut().map(|active| &mut active.rule).find(|rule| matches(rule))?;
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
    fn the_first_rule_that_matches_applies_for_its_times_and_its_time() {
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
    fn ended_rules_are_gone_and_the_others_show_what_is_left() {
        let (mut active, start) = (Active::default(), Instant::now());
        active.add(Rule::new(Fault::Hang).times(1), start);
        active.add(Rule::new(Fault::Html).times(3).lasting(Duration::from_secs(5)), start);
        taken(&mut active, Operation::Get, "a", start);
        taken(&mut active, Operation::Get, "a", start);
        let later = start + Duration::from_secs(2);
        let left = Rule::new(Fault::Html).times(2).lasting(Duration::from_secs(3));
        assert_eq!(active.rules(later), [left]);
        active.remove("html");
        assert!(active.rules(later).is_empty());
    }
}
