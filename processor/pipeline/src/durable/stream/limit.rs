//! Decides the limit of each stream, and whether it is nearly reached. Pure.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::collections::BTreeSet;
use std::fmt;

use async_nats::jetstream::account::Account;
use async_nats::jetstream::stream::{Config, Info};

use crate::durable::stream::kind::Kind;
use crate::settings::{Room, Size};

/// The name of the NATS account in messages.
pub(super) const ACCOUNT: &str = "the NATS account";

/// Together 6.25 GiB. By default NATS uses three quarters of a disk, which is 7.5 GiB of a volume
/// of 10 GiB.
const EVENTS: Size = Size::mebibytes(4_096);
const LEDGER: Size = Size::mebibytes(2_048);
const DEAD_LETTERS: Size = Size::mebibytes(256);

/// A fuller stream is reported, until its use falls to [`ENOUGH`]. In percent.
const NEARLY_FULL: u64 = 80;
const ENOUGH: u64 = 75;

/// The configured limit of this kind of stream.
pub(crate) fn said(kind: Kind, room: &Room) -> Option<Size> {
    match kind {
        Kind::Events => room.events,
        Kind::Ledger => room.ledger,
        Kind::DeadLetters => room.dead_letters,
    }
}

/// The configured limit of this kind of stream, or the default.
pub(crate) fn wanted(kind: Kind, room: &Room) -> Size {
    said(kind, room).unwrap_or(match kind {
        Kind::Events => EVENTS,
        Kind::Ledger => LEDGER,
        Kind::DeadLetters => DEAD_LETTERS,
    })
}

/// The size as `max_bytes` of NATS.
pub(crate) fn max_bytes(size: Size) -> i64 {
    i64::try_from(size.bytes()).unwrap_or(i64::MAX)
}

/// Returns whether a replica created the stream.
pub(crate) fn is_ours(kind: Kind, config: &Config) -> bool {
    config.description.as_deref() == Some(kind.description())
}

/// The action for the limit of an existing stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    To(Size),
    /// The stream keeps its limit; the reason, for the log.
    Refused(String),
}

/// Decides how to change the limit of an existing stream. `used`: the bytes in it.
pub(super) fn change(kind: Kind, config: &Config, used: u64, room: &Room) -> Change {
    let (said, has) = (said(kind, room), u64::try_from(config.max_bytes).unwrap_or(0));
    let is_ours = is_ours(kind, config);
    let asked = |size: Size, why: &str| {
        Change::Refused(format!(
            "cannot set the limit of the stream {} to {size} ({}): {why}",
            config.name,
            kind.setting()
        ))
    };
    match said {
        Some(size) if has == size.bytes() => Change::Nothing,
        Some(size) if !is_ours => {
            asked(size, "somebody else created the stream and must change its max_bytes")
        }
        Some(size) if size.bytes() < used => asked(size, "the stream contains more"),
        Some(size) => Change::To(size),
        // A stream of an earlier version has no limit.
        None if has == 0 && is_ours => {
            Change::To(wanted(kind, room).max(Size::within(used.saturating_mul(2))))
        }
        None if has == 0 && kind == Kind::Events => Change::Refused(format!(
            "the stream {} was created by somebody else and stays as it is: it has no max_bytes and keeps events until max_age, \
             so it may fill the store",
            config.name
        )),
        None => Change::Nothing,
    }
}

/// The bytes in all streams of the account, and the limit; 0 means no limit.
pub(super) fn of_account(account: &Account, events: &Info) -> (u64, u64) {
    let tier = account.tiers.get(&format!("R{}", events.config.num_replicas));
    let (used, limit) = match tier {
        Some(tier) => (tier.storage, tier.limits.max_storage),
        None => (account.storage, account.limits.max_storage),
    };
    (used, limit.and_then(|limit| u64::try_from(limit).ok()).unwrap_or(0))
}

/// The streams that are nearly full. The text has no number that changes, because it becomes a condition's message.
#[derive(Debug, Default)]
pub(super) struct Filling(BTreeSet<String>);

impl Filling {
    /// `limit`: 0 means no limit.
    pub(super) fn see(&mut self, what: &str, used: u64, limit: u64) {
        let percent = u128::from(used) * 100;
        let above = |part: u64| limit > 0 && percent > u128::from(limit) * u128::from(part);
        if above(NEARLY_FULL) {
            self.0.insert(what.to_owned());
        } else if !above(ENOUGH) {
            self.0.remove(what);
        }
    }
}

impl fmt::Display for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(String::as_str).collect();
        if all.is_empty() {
            Ok(())
        } else {
            write!(f, "more than {NEARLY_FULL}% of its room is used up: {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(max_bytes: i64, kind: Kind) -> Config {
        Config {
            name: "S".to_owned(),
            max_bytes,
            description: Some(kind.description().to_owned()),
            ..Config::default()
        }
    }

    #[test]
    fn a_stream_of_ours_without_a_limit_gets_one_with_room_for_as_much_again() {
        let change = |used| change(Kind::Ledger, &config(-1, Kind::Ledger), used, &Room::default());
        assert_eq!(change(5), Change::To(LEDGER));
        assert_eq!(change(3 << 30), Change::To(Size::within(6 << 30)));
    }

    #[test]
    fn what_is_said_is_done_in_streams_of_ours_and_never_below_what_they_hold() {
        let room = Room { events: Some(Size::mebibytes(10)), ..Room::default() };
        let ours = |max_bytes, used| change(Kind::Events, &config(max_bytes, Kind::Events), used, &room);
        assert_eq!(ours(10 << 20, 11 << 20), Change::Nothing);
        assert_eq!(ours(20 << 20, 10 << 20), Change::To(Size::mebibytes(10)));
        assert_eq!(ours(-1, 5), Change::To(Size::mebibytes(10)));
        assert!(matches!(ours(20 << 20, 11 << 20), Change::Refused(why) if why.contains("contains more")));
        let theirs = Config { description: None, ..config(20 << 20, Kind::Events) };
        let refused = change(Kind::Events, &theirs, 5, &room);
        assert!(matches!(refused, Change::Refused(why) if why.contains("somebody else")));
        assert_eq!(change(Kind::Events, &theirs, 5, &Room::default()), Change::Nothing);
        let unlimited = Config { description: None, ..config(-1, Kind::Events) };
        let left = change(Kind::Events, &unlimited, 5, &Room::default());
        assert!(matches!(left, Change::Refused(why) if why.contains("no max_bytes")));
    }

    #[test]
    fn what_fills_is_told_of_until_there_is_clearly_room() {
        let mut filling = Filling::default();
        let mut see = |used, limit| {
            filling.see("S", used, limit);
            filling.to_string()
        };
        assert_eq!(see(80, 100), "");
        assert_eq!(see(81, 100), "more than 80% of its room is used up: S");
        assert_eq!(see(76, 100), "more than 80% of its room is used up: S");
        assert_eq!(see(75, 100), "");
        assert_eq!(see(u64::MAX, 0), "", "no limit");
    }
}
