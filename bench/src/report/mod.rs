//! The results of a run as tables, plots and a document. All of it is pure: measurements in, text out.

mod derived;
mod document;
mod plots;
mod rows;
mod svg;
mod table;
mod texts;

pub(crate) use document::document;
pub(crate) use plots::plots;
pub(crate) use rows::summary;
pub(crate) use table::tables;
