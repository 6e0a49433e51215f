//! The report of a comparison, for people and for programs. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};
use taskpipeline_contract::{TaskId, TaskKey};

use super::compare::Class;

/// The most keys of each class in the text.
const SHOWN: usize = 20;

/// The result of a comparison of KV with the ledger.
#[derive(Debug, Default)]
pub struct Report {
    /// The number of tasks that KV should have.
    pub(super) ledger_tasks: usize,
    /// The number of keys that KV lists under the prefix of tasks.
    pub(super) kv_keys: usize,
    pub(super) differences: BTreeMap<Class, Vec<TaskId>>,
    /// Keys under the prefix that do not name a task.
    pub(super) strangers: Vec<String>,
    /// The number of tasks that differ only because their changes are in flight.
    pub(super) pending: usize,
    /// The number of differences that an earlier pass has repaired.
    pub(super) repaired: usize,
}

impl Report {
    /// Returns whether KV has exactly the tasks of the ledger.
    pub fn is_equal(&self) -> bool {
        self.differences.is_empty() && self.strangers.is_empty()
    }

    pub(super) fn of(&self, class: Class) -> &[TaskId] {
        self.differences.get(&class).map_or(&[], Vec::as_slice)
    }

    /// The report for people: counts, and the first keys of each class, escaped for a terminal.
    pub fn to_text(&self) -> String {
        let mut text = format!("the ledger has {} tasks, KV has {} keys", self.ledger_tasks, self.kv_keys);
        if self.repaired > 0 {
            let _ = write!(text, "; {} differences were repaired", self.repaired);
        }
        if self.pending > 0 {
            let _ = write!(text, "; {} changes are in flight", self.pending);
        }
        text.push('\n');
        for class in Class::ALL {
            let keys = self.of(class).iter().map(|id| TaskKey::new(id.clone()).to_string());
            list(&mut text, class.as_str(), keys);
        }
        list(&mut text, "not tasks", self.strangers.iter().cloned());
        if self.is_equal() {
            let _ = writeln!(text, "in sync: {} tasks", self.ledger_tasks);
        } else {
            text.push_str("not in sync\n");
        }
        text
    }

    /// The whole report, for programs.
    pub fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("equal".to_owned(), self.is_equal().into());
        json.insert("ledgerTasks".to_owned(), self.ledger_tasks.into());
        json.insert("kvKeys".to_owned(), self.kv_keys.into());
        json.insert("repaired".to_owned(), self.repaired.into());
        json.insert("pending".to_owned(), self.pending.into());
        for class in Class::ALL {
            json.insert(class.as_str().to_owned(), json!(self.of(class)));
        }
        json.insert("notTasks".to_owned(), json!(self.strangers));
        Value::Object(json)
    }
}

fn list(text: &mut String, what: &str, keys: impl ExactSizeIterator<Item = String>) {
    let count = keys.len();
    if count == 0 {
        return;
    }
    let _ = writeln!(text, "{what}: {count}");
    for key in keys.take(SHOWN) {
        let _ = writeln!(text, "  {key:?}");
    }
    if count > SHOWN {
        let _ = writeln!(text, "  and {} more (--json names all)", count - SHOWN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_the_first_of_each_class_and_programs_all() {
        let ids: Vec<_> = (10..35).map(|n| TaskId::new(format!("t\u{202e}{n}")).unwrap()).collect();
        let mut report = Report { ledger_tasks: 25, ..Report::default() };
        assert!(report.is_equal());
        report.differences.insert(Class::Missing, ids);
        let text = report.to_text();
        assert!(text.contains("missing: 25\n") && text.contains("and 5 more"), "{text}");
        assert!(text.contains(r#""tasks:t\u{202e}10""#), "{text}");
        let json = report.to_json();
        assert_eq!(json["missing"].as_array().unwrap().len(), 25);
        assert_eq!((&json["equal"], &json["extra"]), (&json!(false), &json!([])));
    }
}
