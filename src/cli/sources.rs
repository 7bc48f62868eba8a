//! The files that a command line names: files, and those below folders.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// A file, and its name: its path as given, or for a folder the folder as given, `/`, and the path below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// A file or folder that could not be read, and why.
#[derive(Debug)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// The reason.
    pub reason: String,
}

/// The files of the paths. Folders are walked in order of file names.
pub fn sources(paths: &[PathBuf]) -> (Vec<Source>, Vec<Failure>) {
    let mut sources = Vec::new();
    let mut failures = Vec::new();
    for path in paths {
        let name = path.to_string_lossy().into_owned();
        if path.is_dir() {
            let name = if name == "/" { String::new() } else { name.trim_end_matches('/').to_owned() };
            walk(path, &name, &mut sources, &mut failures);
        } else {
            sources.push(Source { name, path: path.clone() });
        }
    }
    let mut names = HashSet::new();
    sources.retain(|source| names.insert(source.name.clone()));
    (sources, failures)
}

fn walk(folder: &Path, name: &str, sources: &mut Vec<Source>, failures: &mut Vec<Failure>) {
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(error) => return failures.push(Failure { name: name.to_owned(), reason: error.to_string() }),
    };
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        // A link to a folder is not followed: it may form a cycle.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            walk(&path, &name, sources, failures);
        } else if path.is_file() || !path.exists() {
            sources.push(Source { name, path });
        }
    }
}
