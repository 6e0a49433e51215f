//! The operations of the API, with the names that rules and counters use.

use serde::{Deserialize, Serialize};

/// The operation of a request.
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
    /// Any other path or method.
    Other,
}

impl Operation {
    /// The name in [`Seen`](crate::Seen), in rules and in JSON.
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

    /// Whether the operation changes the namespace.
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

    /// Whether the operation reads the namespace.
    #[must_use]
    pub fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::BulkGet | Self::List)
    }
}

/// The operations that a rule affects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All requests to the API.
    #[default]
    All,
    /// Puts and deletes, bulk or single.
    Writes,
    /// Gets, bulk or single, and lists.
    Reads,
    /// Only these operations.
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
