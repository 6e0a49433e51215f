//! The requests to KV, by their kind.

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
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Put, Self::Delete, Self::Get];

    /// As logs say it.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Get => "GET",
        }
    }

    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Get => "get",
        }
    }
}
