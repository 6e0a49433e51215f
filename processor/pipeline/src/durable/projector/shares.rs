//! Limits the memory of each kind of waiting task in the projector, so that no kind blocks another.
//! Pure.
//!
//! Tasks beyond their share are left in NATS. A second feed reads look-ups again, and all others
//! are read by their revisions (see [`crate::durable::projector::deferred`]).

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

/// The event that a task in memory waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// A place in a request to KV, or the answer to one.
    Write,
    /// The value of the task in KV.
    LookUp,
    /// The end of a long rest after its last write.
    Rest,
    /// The next attempt, after KV named it as not written.
    Retry,
    /// The end of the doubt about an older request. Its record is not in memory.
    Doubt,
    /// Its dead letter, which is being stored.
    Letter,
}

impl Share {
    const COUNT: usize = 6;
}

/// The bytes that each share may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) write: usize,
    /// For each share except `Write`.
    pub(crate) others: [(Share, usize); Share::COUNT - 1],
}

impl Default for Limits {
    /// `Write` has room for two requests of 10,000 tasks in flight, and one that is filling.
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        let others = [
            (Share::LookUp, 2 * MIB),
            (Share::Rest, 2 * MIB),
            (Share::Retry, 2 * MIB),
            (Share::Doubt, 4 * MIB),
            (Share::Letter, MIB),
        ];
        Self { write: 28 * MIB, others }
    }
}

impl Limits {
    fn of(&self, share: Share) -> usize {
        self.others.iter().find(|(other, _)| *other == share).map_or(self.write, |(_, limit)| *limit)
    }

    /// The bytes beyond the limit of `Write` for tasks that return after a doubt or from NATS.
    ///
    /// Only a write makes these tasks fewer, however many new changes fill the limit itself.
    fn for_those_that_come_back(&self) -> usize {
        self.write / 8
    }
}

/// The bytes that each share takes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Occupied {
    limits: [usize; Share::COUNT],
    to_come_back: usize,
    bytes: [usize; Share::COUNT],
}

impl Occupied {
    pub(crate) fn new(limits: &Limits) -> Self {
        let all = [Share::Write, Share::LookUp, Share::Rest, Share::Retry, Share::Doubt, Share::Letter];
        Self {
            limits: all.map(|share| limits.of(share)),
            to_come_back: limits.write + limits.for_those_that_come_back(),
            bytes: [0; Share::COUNT],
        }
    }

    /// Adds bytes of a task to a share.
    pub(crate) fn add(&mut self, share: Share, bytes: usize) {
        self.bytes[share as usize] += bytes;
    }

    /// Removes bytes of a task from a share.
    pub(crate) fn remove(&mut self, share: Share, bytes: usize) {
        self.bytes[share as usize] -= bytes;
    }

    /// Returns whether another task may wait for this.
    pub(crate) fn has_room(&self, share: Share) -> bool {
        self.bytes[share as usize] < self.limits[share as usize]
    }

    /// Returns whether a returning task may wait for its turn in a request.
    pub(crate) fn has_room_to_come_back(&self) -> bool {
        self.bytes[Share::Write as usize] < self.to_come_back
    }

    /// The bytes of all shares.
    #[cfg(test)]
    pub(crate) fn total(&self) -> usize {
        self.bytes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_share_leaves_the_others_their_room() {
        let limits = Limits::default();
        let mut occupied = Occupied::new(&limits);
        for (share, limit) in limits.others {
            assert!(occupied.has_room(share));
            occupied.add(share, limit);
            assert!(!occupied.has_room(share), "{share:?}");
            assert!(occupied.has_room(Share::Write) && occupied.has_room_to_come_back());
        }
        occupied.add(Share::Write, limits.write);
        assert!(!occupied.has_room(Share::Write) && occupied.has_room_to_come_back());
        occupied.remove(Share::LookUp, 1);
        assert!(occupied.has_room(Share::LookUp));
    }
}
