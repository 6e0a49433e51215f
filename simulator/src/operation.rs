//! The operations of the API, by the names that rules and counters use. It knows nothing of requests.

use serde::{Deserialize, Serialize};

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `PUT /bulk`
    BulkPut,
    /// `POST /bulk/delete`, and the legacy `DELETE /bulk`
    BulkDelete,
    /// `POST /bulk/get`
    BulkGet,
    /// `PUT /values/{key}`
    Put,
    /// `GET /values/{key}`
    Get,
    /// `DELETE /values/{key}`
    Delete,
    /// `GET /keys`
    List,
    /// Any path or method that is not KV's.
    Other,
}

impl Operation {
    /// Its name in [`Seen`](crate::Seen), in rules and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BulkPut => "bulk_put",
            Self::BulkDelete => "bulk_delete",
            Self::BulkGet => "bulk_get",
            Self::Put => "put",
            Self::Get => "get",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Other => "other",
        }
    }

    /// Whether it changes the namespace.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(self, Self::Put | Self::Delete) || self.is_bulk_write()
    }

    pub(crate) fn is_bulk_write(self) -> bool {
        matches!(self, Self::BulkPut | Self::BulkDelete)
    }

    pub(crate) fn is_bulk(self) -> bool {
        self.is_bulk_write() || self == Self::BulkGet
    }

    pub(crate) fn has_body(self) -> bool {
        self.is_bulk() || self == Self::Put
    }

    /// Whether it answers with what is in the namespace.
    #[must_use]
    pub fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::BulkGet | Self::List)
    }
}

/// The operations that a rule is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every request that reaches the API.
    #[default]
    All,
    /// Puts and deletes, in bulk and alone.
    Writes,
    /// Gets, in bulk and alone, and lists.
    Reads,
    /// These and no others.
    Only(Vec<Operation>),
}

impl Scope {
    pub(crate) fn covers(&self, operation: Operation) -> bool {
        match self {
            Self::All => true,
            Self::Writes => operation.is_write(),
            Self::Reads => operation.is_read(),
            Self::Only(operations) => operations.contains(&operation),
        }
    }
}

impl From<Operation> for Scope {
    fn from(operation: Operation) -> Self {
        Self::Only(vec![operation])
    }
}

impl<const N: usize> From<[Operation; N]> for Scope {
    fn from(operations: [Operation; N]) -> Self {
        Self::Only(operations.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_counters_use_one_name() {
        use Operation::{BulkDelete, BulkGet, BulkPut, Delete, Get, List, Other, Put};
        for operation in [BulkPut, BulkDelete, BulkGet, Put, Get, Delete, List, Other] {
            assert_eq!(serde_json::to_value(operation).unwrap(), operation.name());
            assert!(!(operation.is_read() && operation.is_write()));
        }
        assert!(Scope::Writes.covers(BulkDelete) && !Scope::Writes.covers(List));
        assert!(Scope::from([Get, List]).covers(List) && !Scope::from(Get).covers(List));
    }
}
