//! The configuration file: from TOML to settings, with every problem found at once.
//!
//! Two configurations: what was written (`document`, checked against `vocabulary`), and what it means (`settings`).
//! Only the second travels; no module below this one knows that TOML exists. Loading also loads what the file names
//! (certificates, keys, error pages) and resolves server names, so `check` finds what `run` would trip over.

mod document;
mod headers;
mod listeners;
mod pools;
mod problem;
mod protect;
mod resolve;
mod routes;
mod schema;
mod sessions;
mod settings;
mod stateless;
pub mod vocabulary;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub use document::{parse_duration, parse_size};
pub use problem::{Problem, Problems, Report, Severity};
pub use schema::schema;
pub use settings::{
    AccessLog, Action, Admin, AdminContact, Configuration, HeaderChanges, Listener, PoolSettings, Process, Protect,
    Retry, Route, RouteRate, ServerEntry, SessionApi, SharedSettings, StatelessSettings, Timeouts,
};

/// A configuration that can be used, and what was noticed on the way.
pub struct Loaded {
    pub configuration: Configuration,
    pub warnings: Report,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}", .0.human(false))]
    Problems(Report),
}

/// What becomes of the names of servers.
#[derive(Clone, Copy)]
pub enum Hosts<'a> {
    /// They are resolved. Those given are in force: that one of them cannot be just now is worth a warning, and no reason
    /// to refuse the file.
    Resolved(&'a HashSet<String>),
    /// Nobody wants to reach them.
    Left,
}

/// Reads a file and everything that it names.
pub fn load(path: &Path, hosts: Hosts<'_>) -> Result<Loaded, LoadError> {
    let source = std::fs::read_to_string(path).map_err(|error| LoadError::Read { path: path.to_owned(), error })?;
    parse(path, source, hosts).map_err(LoadError::Problems)
}

/// Only how the admin surface is reached: whoever wants to talk to a proxy need not be able to read its keys.
pub fn admin_contact(path: &Path) -> Result<AdminContact, LoadError> {
    let source = std::fs::read_to_string(path).map_err(|error| LoadError::Read { path: path.to_owned(), error })?;
    let problems = Problems::default();
    let contact = {
        let (document, _) = DeTable::parse_recoverable(&source);
        resolve::admin_contact(document.get_ref(), path, &problems)
    };
    contact.filter(|_| !problems.has_errors()).ok_or_else(|| {
        let path = path.display().to_string();
        LoadError::Problems(Report { path, source, files: Vec::new(), problems: problems.into_sorted() })
    })
}

/// Reads the text of a file; paths in it are relative to the file's directory.
fn parse(path: &Path, source: String, hosts: Hosts<'_>) -> Result<Loaded, Report> {
    let problems = Problems::default();
    let (configuration, files) = {
        let (document, errors) = DeTable::parse_recoverable(&source);
        for error in errors {
            problems.error(error.span().unwrap_or(0..0), error.message().to_owned(), None);
        }
        document::check(document.get_ref(), &problems);
        resolve::resolve(document.get_ref(), path, &problems, hosts)
    };
    let failed = problems.has_errors();
    let report = Report { path: path.display().to_string(), source, files, problems: problems.into_sorted() };
    match configuration {
        Some(configuration) if !failed => Ok(Loaded { configuration, warnings: report }),
        _ => Err(report),
    }
}

#[cfg(test)]
mod tests;
