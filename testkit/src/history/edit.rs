//! The settings of the replicas as a file, and the edits of it while they run. Pure.

use std::time::Duration;

use super::dice::Dice;
use super::fault::SETTLE_AFTER;
use super::moment::{Servers, Strike};

/// The initial values of the settings that may change at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    max_attempts: u32,
    delays: Vec<Duration>,
    budget: (u32, Duration),
    request_timeout: Duration,
    min_write_interval: Duration,
    max_keys: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            delays: [100, 200, 400].map(Duration::from_millis).to_vec(),
            budget: (200_000, Duration::from_secs(300)),
            request_timeout: Duration::from_secs(1),
            min_write_interval: Duration::from_millis(50),
            max_keys: 500,
        }
    }
}

/// One edit of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// The number of attempts of a write.
    MaxAttempts(u32),
    /// The delays between the attempts.
    Delays(Vec<Duration>),
    /// The request budget: a number of requests in a period.
    Budget(u32, Duration),
    /// The time limit of a request.
    RequestTimeout(Duration),
    /// The shortest interval between two writes of a task.
    MinWriteInterval(Duration),
    /// The number of keys in a request.
    MaxKeys(u32),
    /// Invalid content, which the replicas must refuse, by its index in `REFUSED`.
    Refused(usize),
}

/// The number of kinds of edits.
#[cfg(test)]
pub(crate) const KINDS: usize = 7;

/// Invalid content: without a setting it replaces the whole file, otherwise that setting.
const REFUSED: [(Option<&str>, &str); 8] = [
    (Some("maxAttempts"), "0"),
    (Some("maxAttempts"), "many"),
    (Some("delays"), "[]"),
    (Some("requestBudget"), "{requests: 0, period: 1s}"),
    (Some("requestTimeout"), "20s"),
    (Some("minWriteInterval"), "25h"),
    (Some("maxKeys"), "10001"),
    (None, "spec: {"),
];

impl Edit {
    /// The name in the counters.
    #[must_use]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::MaxAttempts(_) => "edit of retry.maxAttempts",
            Self::Delays(_) => "edit of retry.delays",
            Self::Budget(..) => "edit of kv.requestBudget",
            Self::RequestTimeout(_) => "edit of kv.requestTimeout",
            Self::MinWriteInterval(_) => "edit of kv.minWriteInterval",
            Self::MaxKeys(_) => "edit of kv.batch.maxKeys",
            Self::Refused(_) => "edit that must be refused",
        }
    }

    /// The metrics by which a replica shows that the edit is in effect.
    #[must_use]
    pub(crate) fn shows(&self) -> Vec<(String, f64)> {
        let one = |name: &str, value: f64| vec![(name.to_owned(), value)];
        match self {
            Self::MaxAttempts(attempts) => one("retry.maxAttempts", f64::from(*attempts)),
            Self::Delays(delays) => {
                let delays = delays.iter().enumerate();
                delays.map(|(n, delay)| (format!("retry.delays[{n}]"), delay.as_secs_f64())).collect()
            }
            Self::Budget(requests, period) => vec![
                ("kv.requestBudget.requests".to_owned(), f64::from(*requests)),
                ("kv.requestBudget.period".to_owned(), period.as_secs_f64()),
            ],
            Self::RequestTimeout(timeout) => one("kv.requestTimeout", timeout.as_secs_f64()),
            Self::MinWriteInterval(interval) => one("kv.minWriteInterval", interval.as_secs_f64()),
            Self::MaxKeys(keys) => one("kv.batch.maxKeys", f64::from(*keys)),
            Self::Refused(_) => Vec::new(),
        }
    }
}

impl Settings {
    /// Applies an edit; a refused edit changes nothing.
    #[must_use]
    pub(crate) fn with(mut self, edit: &Edit) -> Self {
        match edit {
            Edit::MaxAttempts(attempts) => self.max_attempts = *attempts,
            Edit::Delays(delays) => self.delays.clone_from(delays),
            Edit::Budget(requests, period) => self.budget = (*requests, *period),
            Edit::RequestTimeout(timeout) => self.request_timeout = *timeout,
            Edit::MinWriteInterval(interval) => self.min_write_interval = *interval,
            Edit::MaxKeys(keys) => self.max_keys = *keys,
            Edit::Refused(_) => {}
        }
        self
    }

    /// Returns the file with these settings.
    #[must_use]
    pub(crate) fn file(
        &self,
        nats: &str,
        servers: Servers,
        little_room: bool,
        settle_after: Duration,
    ) -> String {
        let span = |duration: &Duration| format!("{}ms", duration.as_millis());
        let replicas = if servers == Servers::Three { 3 } else { 1 };
        // The room is about as much as a history publishes; half of it is kept free.
        let room = if little_room { ", room: {events: 4Mi}" } else { "" };
        let delays: Vec<_> = self.delays.iter().map(span).collect();
        let (requests, period) = self.budget;
        let lines = [
            "apiVersion: taskpipeline.dev/v1alpha1".to_owned(),
            "kind: TaskPipeline".to_owned(),
            "metadata: {name: tasks}".to_owned(),
            "spec:".to_owned(),
            format!("  nats: {{url: \"{nats}\"}}"),
            // Some events are too large for the envelope of one dead letter.
            format!("  delivery: {{stream: {{replicas: {replicas}, maxEventBytes: 1048576}}{room}}}"),
            "  kv:".to_owned(),
            "    secretRef: {name: unused}".to_owned(),
            format!("    settleAfter: {}", span(&settle_after)),
            format!("    requestBudget: {{requests: {requests}, period: {}}}", span(&period)),
            format!("    requestTimeout: {}", span(&self.request_timeout)),
            format!("    minWriteInterval: {}", span(&self.min_write_interval)),
            "    batch:".to_owned(),
            format!("      maxKeys: {}", self.max_keys),
            "  retry:".to_owned(),
            format!("    maxAttempts: {}", self.max_attempts),
            format!("    delays: [{}]", delays.join(", ")),
            String::new(),
        ];
        lines.join("\n")
    }
}

/// Returns the file with invalid content.
#[must_use]
pub(crate) fn spoilt(file: &str, number: usize) -> String {
    let (setting, text) = REFUSED[number % REFUSED.len()];
    let Some(setting) = setting else { return text.to_owned() };
    let spoil = |line: &str| match line.split_once(&format!("{setting}: ")) {
        Some((before, _)) => format!("{before}{setting}: {text}"),
        None => line.to_owned(),
    };
    file.lines().map(spoil).collect::<Vec<_>>().join("\n")
}

/// Draws three edits, whose kinds rotate with the turn, and one that must be refused.
pub(crate) fn draw(turn: u64, dice: &mut Dice, lasting: Duration) -> Vec<Strike<Edit>> {
    let mut edits: Vec<_> = (0..3).map(|n| good(turn.wrapping_mul(3).wrapping_add(n), dice)).collect();
    edits.push(Edit::Refused(dice.index(REFUSED.len())));
    dice.shuffle(&mut edits);
    let most = u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX).max(500);
    let mut moments: Vec<_> = edits.iter().map(|_| Duration::from_millis(dice.between(500, most))).collect();
    moments.sort_unstable();
    moments.into_iter().zip(edits).map(|(at, fault)| Strike { at, fault }).collect()
}

fn good(number: u64, dice: &mut Dice) -> Edit {
    let millis = |dice: &mut Dice, least, most| Duration::from_millis(dice.between(least, most));
    let count = |dice: &mut Dice, least, most| u32::try_from(dice.between(least, most)).unwrap_or(1);
    match number % 6 {
        0 => Edit::MaxAttempts(count(dice, 1, 9)),
        1 => Edit::Delays((0..=dice.index(4)).map(|_| millis(dice, 20, 1_500)).collect()),
        2 => Edit::Budget(count(dice, 100, 900), millis(dice, 1_000, 2_000)),
        // The limit is a third of the settle time.
        3 => Edit::RequestTimeout(millis(
            dice,
            400,
            u64::try_from(SETTLE_AFTER.as_millis() / 3).unwrap_or(1_000),
        )),
        4 => Edit::MinWriteInterval(millis(dice, 0, 2_500)),
        _ => Edit::MaxKeys(count(dice, 20, 5_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spoilt_differs_in_one_line_or_is_no_file_at_all() {
        let file = Settings::default().file("nats://n:4222", Servers::Three, true, SETTLE_AFTER);
        for (number, (setting, _)) in REFUSED.iter().enumerate() {
            let spoilt = spoilt(&file, number);
            let differ = file.lines().zip(spoilt.lines()).filter(|(good, bad)| good != bad).count();
            assert_eq!(differ, 1, "{spoilt}");
            assert_eq!(spoilt.lines().count() > 1, setting.is_some());
        }
    }

    #[test]
    fn an_edit_shows_what_it_sets() {
        let mut dice = Dice::new(1);
        for number in 0..6 {
            let edit = good(number, &mut dice);
            let file = |settings: Settings| settings.file("nats://n:4222", Servers::One, false, SETTLE_AFTER);
            let edited = Settings::default().with(&edit);
            assert_ne!(file(edited.clone()), file(Settings::default()), "{edit:?}");
            assert!(!edit.shows().is_empty() && edited.clone().with(&Edit::Refused(0)) == edited);
        }
    }
}
