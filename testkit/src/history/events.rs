//! Draws the events of a history by its seed; another module publishes them.
//!
//! The ids are a few hot ones, many cold ones, and ids that only KV knows. Others are never created, or are hard to
//! encode. A few of the events are invalid.

use std::time::Duration;

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use taskpipeline_contract::EventKind;

use super::dice::Dice;

/// The prefix of the ids of tasks that KV contains before the start.
pub(crate) const SEEDED: &str = "seeded-";

/// The part of a title that KV refuses, while a rule for it is set.
pub(crate) const POISON: &str = "POISON";

/// The smallest number of published events.
pub(crate) const LEAST_EVENTS: usize = 10_000;

const HOT: u64 = 8;
const COLD: u64 = 1_500;
/// The number of ids that have a few events within a second and none later. If one of them goes wrong, it stays wrong.
const BRIEF: u64 = 1_000;
const NEVER: u64 = 150;
const POISONED: u64 = 4;
const STATUSES: [&str; 4] = ["pending", "in_progress", "completed", "cancelled"];

/// Something to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    /// The kind, which gives the subject.
    pub(crate) kind: EventKind,
    /// The payload.
    pub(crate) payload: Bytes,
}

/// The source of events.
#[derive(Debug)]
pub(crate) struct Mixture {
    dice: Dice,
    seed: u64,
    number: u64,
    /// The number of events of each id so far.
    had: HashMap<String, u32>,
    earlier: Vec<Publication>,
    /// The number of ids that KV knows before the start.
    seeded: u64,
    poison: bool,
    hostile: Vec<String>,
}

impl Mixture {
    pub(crate) fn new(seed: u64, dice: Dice, seeded: u64, poison: bool) -> Self {
        let (had, earlier) = (HashMap::new(), Vec::new());
        Self { dice, seed, number: 0, had, earlier, seeded, poison, hostile: hostile() }
    }

    /// Draws the next event; sometimes a repeated or an invalid one.
    pub(crate) fn draw(&mut self) -> Publication {
        self.number += 1;
        let publication = match self.dice.below(1_000) {
            0..5 => self.invalid(),
            5..25 if !self.earlier.is_empty() => return self.again(),
            _ => self.valid(),
        };
        self.earlier.push(publication.clone());
        publication
    }

    /// Returns a deletion of this id.
    pub(crate) fn delete(&mut self, id: &str) -> Publication {
        self.number += 1;
        self.event(EventKind::Deleted, id)
    }

    /// Returns a creation of this id.
    pub(crate) fn create(&mut self, id: &str) -> Publication {
        self.number += 1;
        self.event(EventKind::Created, id)
    }

    /// Returns an update of all fields of this id, as large as an update may be.
    pub(crate) fn large_update(&mut self, id: &str) -> Publication {
        self.number += 1;
        let data =
            json!({"id": id, "title": format!("title {}", self.number), "description": "x".repeat(2_000)});
        let event = json!({"correlationId": format!("h{}-{}", self.seed, self.number), "data": data});
        Publication { kind: EventKind::Updated, payload: event.to_string().into() }
    }

    /// Draws a valid event of this kind and id.
    pub(crate) fn event_of(&mut self, kind: EventKind, id: &str) -> Publication {
        self.number += 1;
        self.event(kind, id)
    }

    /// Returns an invalid event that is too large for the envelope of one dead letter.
    pub(crate) fn too_large(&mut self) -> Publication {
        self.number += 1;
        let payload = format!("{{\"{}-{}\": \"{}", self.seed, self.number, "x".repeat(900_000));
        Publication { kind: EventKind::Created, payload: payload.into() }
    }

    /// Repeats the bytes of a recent event, which is a new event nevertheless.
    fn again(&mut self) -> Publication {
        let recent = self.earlier.len().saturating_sub(500);
        let at = recent + self.dice.index(self.earlier.len() - recent);
        self.earlier[at].clone()
    }

    fn valid(&mut self) -> Publication {
        let (id, kind) = match self.dice.below(100) {
            0..30 => {
                let id = format!("hot-{}", self.dice.below(HOT));
                self.lively(id, 75)
            }
            30..42 => self.known_to_kv(),
            42..47 => self.never(),
            47..55 => {
                let id = self.dice.pick(&self.hostile).cloned().unwrap_or_default();
                self.lively(id, 55)
            }
            55 if self.poison => {
                let id = format!("poison-{}", self.dice.below(POISONED));
                self.lively(id, 55)
            }
            55..80 => {
                let id = format!("brief-{}", self.front(BRIEF, 40));
                self.lively(id, 55)
            }
            _ => {
                let id = format!("cold-{}", self.dice.below(COLD));
                self.lively(id, 55)
            }
        };
        self.event(kind, &id)
    }

    /// Draws one of the few ids that are in use now, of a larger number over the whole history.
    fn front(&mut self, of: u64, breadth: u64) -> u64 {
        of * self.number / LEAST_EVENTS as u64 + self.dice.below(breadth)
    }

    /// Draws an event of an id that is created, changed and deleted; mostly it is created first.
    fn lively(&mut self, id: String, updates: u64) -> (String, EventKind) {
        let first = *self.had.get(&id).unwrap_or(&0) == 0;
        let dice = self.dice.below(100);
        let kind = if first {
            match dice {
                0..80 => EventKind::Created,
                80..90 => EventKind::Updated,
                _ => EventKind::Deleted,
            }
        } else if dice < updates {
            EventKind::Updated
        } else if self.dice.chance(500) {
            EventKind::Created
        } else {
            EventKind::Deleted
        };
        (id, kind)
    }

    /// Draws an event of an id that KV knows and that no event has created, at least at first.
    fn known_to_kv(&mut self) -> (String, EventKind) {
        // The ids follow each other, so that unknown ones remain until the end. The range is a little too large: the
        // ids beyond it are not in KV.
        let number = match self.dice.below(10) {
            0..8 => self.front(self.seeded, self.seeded / 20),
            _ => self.dice.below(self.seeded),
        };
        let id = format!("{SEEDED}{number}");
        if *self.had.get(&id).unwrap_or(&0) >= 3 {
            return self.lively(id, 55);
        }
        let kind = if self.dice.chance(750) { EventKind::Updated } else { EventKind::Deleted };
        (id, kind)
    }

    /// Draws an event of an id that is changed and deleted, and never created.
    fn never(&mut self) -> (String, EventKind) {
        let id = format!("never-{}", self.dice.below(NEVER));
        (id, if self.dice.chance(900) { EventKind::Updated } else { EventKind::Deleted })
    }

    fn event(&mut self, kind: EventKind, id: &str) -> Publication {
        *self.had.entry(id.to_owned()).or_default() += 1;
        let mut data = Map::new();
        data.insert("id".to_owned(), json!(id));
        // An update has any of the fields, and sometimes none.
        let names = |dice: &mut Dice| kind == EventKind::Created || dice.chance(500);
        if kind != EventKind::Deleted {
            if names(&mut self.dice) {
                data.insert("title".to_owned(), json!(self.title(id)));
            }
            if names(&mut self.dice) {
                data.insert("description".to_owned(), json!(self.description()));
            }
            if names(&mut self.dice) {
                data.insert("status".to_owned(), json!(STATUSES[self.dice.index(STATUSES.len())]));
            }
        }
        let event = json!({"correlationId": format!("h{}-{}", self.seed, self.number), "data": data});
        Publication { kind, payload: event.to_string().into() }
    }

    fn title(&mut self, id: &str) -> String {
        let poison = if id.starts_with("poison-") && self.dice.chance(600) { POISON } else { "title" };
        let more = ["", " <b>&\"'", " \u{1f980}\u{301}\u{202e}", " tab-less \\ / ~"];
        format!("{poison} {}{}", self.number, more[self.dice.index(more.len())])
    }

    fn description(&mut self) -> String {
        let length = self.dice.index(200);
        "lorem ipsum\n\u{e9}\u{4e2d} ".chars().cycle().take(length).collect()
    }

    fn invalid(&mut self) -> Publication {
        let kind = EventKind::ALL[self.dice.index(3)];
        let mark = format!("{}-{}", self.seed, self.number);
        let payload: Bytes = match self.dice.below(8) {
            0 => format!("not JSON {mark}").into(),
            1 => json!({"correlationId": mark, "data": {"id": ""}}).to_string().into(),
            2 => json!({"correlationId": mark, "data": {"id": "a", "title": "", "status": "done"}})
                .to_string()
                .replace("\"id\":\"a\"", "\"id\":\"\\u0007\"")
                .into(),
            3 => json!({"correlationId": "", "data": {"id": mark}}).to_string().into(),
            4 => json!([mark]).to_string().into(),
            5 => [mark.as_bytes(), &[0xff, 0xfe, 0x00]].concat().into(),
            6 => format!(
                "{{\"correlationId\":\"{mark}\",\"correlationId\":\"{mark}\",\"data\":{{\"id\":\"a\"}}}}"
            )
            .into(),
            _ => Bytes::new(),
        };
        Publication { kind, payload }
    }
}

/// Lists ids that subjects, URLs, paths and logs could handle wrongly.
fn hostile() -> Vec<String> {
    let ids = [
        "with space",
        " ",
        "dot.ted.id",
        ".leading",
        "trailing.",
        "...",
        "*",
        ">",
        "a.*.b",
        "a.>",
        "$KV.x",
        "slash/es/",
        "..\\",
        "per%cent%2F",
        "quo\"te'",
        "<script>",
        "\u{1f980}\u{1f980}",
        "\u{fc}n\u{ef}c\u{f6}d\u{e9}",
        "\u{202e}rtl",
        "e\u{301}",
        "\u{e9}",
        "=",
        "-",
        "_",
        "a",
        "A",
        "tasks:nested",
    ];
    let long = ["x".repeat(256), "\u{1f980}".repeat(64), ".".repeat(255), ">".repeat(256)];
    ids.into_iter().map(str::to_owned).chain(long).collect()
}

/// The value of a task that KV contains before the start.
pub(crate) fn seeded_value(id: &str) -> Value {
    let moment = "2026-01-02T03:04:05.678Z";
    json!({"id": id, "title": format!("before {id}"), "description": "from before", "status": "pending",
        "createdAt": moment, "updatedAt": moment})
}

/// Events that are published together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Burst {
    /// The events.
    pub(crate) publications: Vec<Publication>,
    /// Whether each event is published again until it is acked; otherwise each is published once, without an ack.
    pub(crate) acked: bool,
    /// The pause after the burst.
    pub(crate) pause: Duration,
}

#[cfg(test)]
mod tests {
    use taskpipeline_contract::Event;

    use super::*;

    #[test]
    fn about_five_in_a_thousand_are_no_events_and_hot_ids_get_their_share() {
        let mut mixture = Mixture::new(3, Dice::new(3), 900, true);
        let drawn: Vec<_> = (0..10_000).map(|_| mixture.draw()).collect();
        let events: Vec<_> = drawn.iter().filter_map(|it| Event::decode(it.kind, &it.payload).ok()).collect();
        let invalid = drawn.len() - events.len();
        assert!((30..90).contains(&invalid), "{invalid}");
        let hot = events.iter().filter(|event| event.task_id().as_str().starts_with("hot-")).count();
        assert!((2_500..3_500).contains(&hot), "{hot}");
        for class in ["cold-", "brief-", "seeded-", "never-", "poison-", "x", ">"] {
            let of_class = |event: &&Event| event.task_id().as_str().starts_with(class);
            assert!(events.iter().any(|event| of_class(&event)), "no {class}");
        }
        let never = events.iter().filter(|event| event.task_id().as_str().starts_with("never-"));
        assert!(never.clone().all(|event| event.kind() != EventKind::Created));
    }

    #[test]
    fn every_hostile_id_is_an_id_and_what_is_seeded_is_a_task() {
        for id in hostile() {
            taskpipeline_contract::TaskId::new(&id).unwrap();
        }
        serde_json::from_value::<taskpipeline_contract::Task>(seeded_value("a")).unwrap();
    }
}
