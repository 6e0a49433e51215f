//! The kinds of requests to KV.

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bulk put.
    Put,
    /// Bulk delete.
    Delete,
    /// Bulk get.
    Get,
}

impl Operation {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Put, Self::Delete, Self::Get];

    /// The name in logs.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Get => "GET",
        }
    }

    /// The label in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Get => "get",
        }
    }
}
