//! The systems under test and their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct System {
    /// The kind of system.
    pub(crate) kind: Kind,
    /// The number of processes that share the events.
    pub(crate) replicas: usize,
}

/// The kinds of systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// This processor in mode `Durable`.
    Durable,
    /// This processor in mode `Core`.
    Core,
    /// The peer, `bench/peer`.
    Peer,
    /// The least work of a system like ours (`floor`).
    Floor,
    /// The floor with the cost of exactness: puts that compare, and values that are read back.
    GuardedFloor,
    /// The least work of the peer: its requests in a plain loop.
    PeerFloor,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Durable, Self::Core, Self::Peer, Self::Floor, Self::GuardedFloor, Self::PeerFloor];

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Core => "core",
            Self::Peer => "peer",
            Self::Floor => "floor",
            Self::GuardedFloor => "guarded-floor",
            Self::PeerFloor => "peer-floor",
        }
    }

    /// Whether its events wait in a stream.
    pub(crate) fn has_stream(self) -> bool {
        self == Self::Durable || self.is_floor()
    }

    /// Whether it is a floor of ours.
    pub(crate) fn is_floor(self) -> bool {
        matches!(self, Self::Floor | Self::GuardedFloor)
    }
}

impl System {
    /// The name in a report.
    pub(crate) fn title(self) -> String {
        let name = match self.kind {
            Kind::Durable => "ours, Durable",
            Kind::Core => "ours, Core",
            Kind::Peer => "peer",
            Kind::Floor => return "floor".to_owned(),
            Kind::GuardedFloor => return "guarded floor".to_owned(),
            Kind::PeerFloor => return "the peer's floor".to_owned(),
        };
        format!("{name}, {} {}", self.replicas, if self.replicas == 1 { "replica" } else { "replicas" })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| "must be durable, core, peer, floor, guarded-floor or peer-floor".to_owned())
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind.name(), self.replicas)
    }
}

impl From<System> for String {
    fn from(system: System) -> Self {
        system.to_string()
    }
}

impl TryFrom<String> for System {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (kind, replicas) = text.rsplit_once('-').ok_or("must be such as durable-2")?;
        Ok(Self { kind: kind.parse()?, replicas: replicas.parse().map_err(|_| "must end with a number")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_its_system() {
        for kind in Kind::ALL {
            let system = System { kind, replicas: 4 };
            assert_eq!(System::try_from(system.to_string()), Ok(system));
        }
        assert!(System::try_from("durable".to_owned()).is_err());
    }
}
