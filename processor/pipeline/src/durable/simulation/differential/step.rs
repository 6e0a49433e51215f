//! The steps of a script.

use super::super::dice::Dice;

/// A limit that all events of a script fit into.
pub(super) const ALL: usize = 1_000;

/// One call, or several that belong together.
#[derive(Debug)]
pub(super) enum Step {
    /// A compare-and-set of this record. `off` is the error of the expected revision.
    Set {
        subject: usize,
        off: u64,
    },
    /// A write that ignores the record's revision.
    Overwrite {
        subject: usize,
    },
    /// Two compare-and-sets of one record at once.
    Both {
        subject: usize,
    },
    /// Write a record that expires, and wait until it has expired.
    Expire {
        subject: usize,
    },
    /// Leave the ledger no room for more records.
    Full,
    /// Give the ledger room again.
    Room,
    Read {
        subject: usize,
    },
    ReadAt {
        behind: u64,
    },
    ReadMany,
    ReadAll,
    Letter {
        id: u64,
    },
    Publish,
    Present,
    Event {
        sequence: u64,
    },
    Consumer {
        incarnation: u32,
        read_from: u64,
    },
    DeleteConsumer {
        incarnation: u32,
    },
    Consumers,
    Pull {
        incarnation: u32,
        most: usize,
    },
    Ack {
        incarnation: u32,
        which: usize,
    },
    /// Request a redelivery at once, and pull all waiting messages.
    Nak {
        incarnation: u32,
        which: usize,
    },
    Recreate,
}

pub(super) fn drawn(dice: &mut Dice) -> Step {
    let subject = dice.below(SUBJECTS);
    let incarnation = if dice.chance(80) { 1 } else { 2 };
    match dice.below(100) {
        0..20 => Step::Set { subject, off: if dice.chance(75) { 0 } else { dice.between(1, 3) } },
        20..24 => Step::Overwrite { subject },
        24..32 => Step::Both { subject },
        32 => Step::Expire { subject },
        33 => Step::Full,
        34..36 => Step::Room,
        36..40 => Step::Read { subject },
        40..44 => Step::ReadAt { behind: dice.between(0, 6) },
        44..47 => Step::ReadMany,
        47..50 => Step::ReadAll,
        50..53 => Step::Letter { id: dice.between(1, 5) },
        53..67 => Step::Publish,
        67..70 => Step::Present,
        70..74 => Step::Event { sequence: dice.between(1, 20) },
        74..78 => Step::Consumer { incarnation, read_from: dice.between(0, 6) },
        78 => Step::DeleteConsumer { incarnation },
        79..81 => Step::Consumers,
        81..87 => Step::Pull { incarnation, most: if dice.chance(60) { dice.below(4) + 1 } else { ALL } },
        87..94 => Step::Ack { incarnation, which: dice.below(5) },
        94..99 => Step::Nak { incarnation, which: dice.below(5) },
        _ => Step::Recreate,
    }
}

/// The number of records. They are marks of replicas, which are written like all others.
pub(super) const SUBJECTS: usize = 5;
